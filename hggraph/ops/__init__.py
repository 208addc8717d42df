"""What is computed: each operator with its equation, plain reference, CPU path, gradient and dispatch."""

from hggraph.ops._library import use_backend as use_backend
from hggraph.ops.centre_update import centre_update as centre_update
from hggraph.ops.deform_conv2d import deform_conv2d as deform_conv2d
from hggraph.ops.edge_attention import edge_attention as edge_attention
from hggraph.ops.grouped_conv2d import grouped_conv2d as grouped_conv2d
from hggraph.ops.local_attention import local_affinity as local_affinity
from hggraph.ops.local_attention import local_attention as local_attention
from hggraph.ops.region_adjacency import region_adjacency as region_adjacency
from hggraph.ops.region_edges import region_edges as region_edges
from hggraph.ops.region_pool import region_pool as region_pool
from hggraph.ops.region_unpool import region_unpool as region_unpool
from hggraph.ops.scatter import gather as gather
from hggraph.ops.scatter import scatter as scatter
from hggraph.ops.segment import csr_pointer as csr_pointer
from hggraph.ops.segment import segment_reduce as segment_reduce
from hggraph.ops.segment import segment_softmax as segment_softmax
from hggraph.ops.soft_assign import soft_assign as soft_assign
from hggraph.ops.typed_aggregate import typed_aggregate as typed_aggregate
from hggraph.ops.typed_aggregate_dense import typed_aggregate_dense as typed_aggregate_dense
from hggraph.ops.unpool_conv1x1 import unpool_conv1x1 as unpool_conv1x1
