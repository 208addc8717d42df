"""From image to regions: importance, active focus, centre sampling, soft SLIC, region graphs."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.cluster.cells import Cells as Cells
from hggraph.cluster.cells import Superpixels as Superpixels
from hggraph.cluster.cells import Voronoi as Voronoi
from hggraph.cluster.clusterer import SoftSLIC as SoftSLIC
from hggraph.cluster.color import photo_features as photo_features
from hggraph.cluster.color import rgb_to_lab as rgb_to_lab
from hggraph.cluster.importance import active_focus as active_focus
from hggraph.cluster.importance import importance_map as importance_map
from hggraph.cluster.importance import object_attention as object_attention
from hggraph.cluster.importance import uncertainty_attention as uncertainty_attention
from hggraph.cluster.region_graph import ToRegionGraph as ToRegionGraph
from hggraph.cluster.region_graph import region_graph as region_graph
from hggraph.cluster.sampling import sample_centers as sample_centers
from hggraph.cluster.soft_slic import soft_slic as soft_slic
from hggraph.cluster.warp import warp_grid as warp_grid
