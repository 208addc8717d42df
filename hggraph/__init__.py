"""hggraph: images become graphs, and convolution becomes message passing."""

from hggraph.cluster import SoftSLIC as SoftSLIC
from hggraph.cluster import ToRegionGraph as ToRegionGraph
from hggraph.cluster import region_graph as region_graph
from hggraph.graph import Assignment as Assignment
from hggraph.graph import RegionAdjacency as RegionAdjacency
from hggraph.graph import grid_graph as grid_graph
from hggraph.nn import DenseHGConv as DenseHGConv
from hggraph.nn import HGConv as HGConv
from hggraph.nn import HGStage as HGStage
from hggraph.ops import use_backend as use_backend
from hggraph.stencil import Stencil as Stencil

__all__ = [
    "Assignment",
    "DenseHGConv",
    "HGConv",
    "HGStage",
    "RegionAdjacency",
    "SoftSLIC",
    "Stencil",
    "ToRegionGraph",
    "grid_graph",
    "region_graph",
    "use_backend",
]
__version__ = "0.1.0"
