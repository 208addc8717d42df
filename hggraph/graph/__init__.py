"""What is passed around: assignments, adjacency and pixel graphs, PyG and networkx in and out."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.graph.adjacency import RegionAdjacency as RegionAdjacency
from hggraph.graph.assignment import Assignment as Assignment
from hggraph.graph.grid_graph import grid_graph as grid_graph
from hggraph.graph.to_networkx import to_networkx as to_networkx
