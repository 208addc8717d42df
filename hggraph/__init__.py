"""hggraph: images become graphs, and convolution becomes message passing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hggraph.cluster import SoftSLIC as SoftSLIC
    from hggraph.cluster.region_graph import ToRegionGraph as ToRegionGraph
    from hggraph.cluster.region_graph import region_graph as region_graph
    from hggraph.graph import Assignment as Assignment
    from hggraph.graph import RegionAdjacency as RegionAdjacency
    from hggraph.graph.grid_graph import grid_graph as grid_graph
    from hggraph.models.convert import convert as convert
    from hggraph.nn import DenseHGConv as DenseHGConv
    from hggraph.nn import HGConv as HGConv
    from hggraph.nn import HGStage as HGStage
    from hggraph.ops import use_backend as use_backend
    from hggraph.stencil import Stencil as Stencil

__version__ = "0.1.0"

# PyTorch and PyG take seconds to import, so a name is fetched from its floor when it is first used
_HOME = {
    "Assignment": "graph",
    "DenseHGConv": "nn",
    "HGConv": "nn",
    "HGStage": "nn",
    "RegionAdjacency": "graph",
    "SoftSLIC": "cluster",
    "Stencil": "stencil",
    "ToRegionGraph": "cluster",
    "convert": "models",
    "grid_graph": "graph",
    "region_graph": "cluster",
    "use_backend": "ops",
}
_FLOORS = ("cli", "cluster", "data", "graph", "models", "nn", "ops", "stencil", "viz")
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Fetch a public name or a sub-package when it is first used."""
    if name in _HOME:
        value = getattr(import_module(f"hggraph.{_HOME[name]}"), name)
    elif name in _FLOORS:
        value = import_module(f"hggraph.{name}")
    else:
        raise AttributeError(f"module 'hggraph' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List public names and sub-packages."""
    return sorted({*globals(), *__all__, *_FLOORS})
