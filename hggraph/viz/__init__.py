"""Pictures of what the clustering and the region graph do to an image."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.viz.region_figure import region_figure as region_figure
from hggraph.viz.region_figure import save_figure as save_figure
