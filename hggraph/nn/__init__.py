"""Layers and losses."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.nn.aspp import ASPP as ASPP
from hggraph.nn.asymmetric_non_local import AsymmetricNonLocal as AsymmetricNonLocal
from hggraph.nn.cgnl import CGNL as CGNL
from hggraph.nn.context_module import ContextAggregation as ContextAggregation
from hggraph.nn.context_module import ContextUpdate as ContextUpdate
from hggraph.nn.deform_conv import DeformConv2d as DeformConv2d
from hggraph.nn.dense_hg_conv import DenseHGConv as DenseHGConv
from hggraph.nn.gmm_conv import GMMConv as GMMConv
from hggraph.nn.hg_block import HGBasicBlock as HGBasicBlock
from hggraph.nn.hg_block import HGBottleneck as HGBottleneck
from hggraph.nn.hg_conv import HGConv as HGConv
from hggraph.nn.hg_py_conv import DenseHGPyConv as DenseHGPyConv
from hggraph.nn.hg_py_conv import HGPyConv as HGPyConv
from hggraph.nn.hg_stage import HGStage as HGStage
from hggraph.nn.local_attention import DenseLocalAttention as DenseLocalAttention
from hggraph.nn.local_attention import LocalAttention as LocalAttention
from hggraph.nn.local_distribution import LocalDistributionV1 as LocalDistributionV1
from hggraph.nn.local_distribution import LocalDistributionV2 as LocalDistributionV2
from hggraph.nn.losses import BinaryCrossEntropy as BinaryCrossEntropy
from hggraph.nn.losses import CrossEntropy as CrossEntropy
from hggraph.nn.non_local import NonLocal as NonLocal
from hggraph.nn.ocr import OCR as OCR
from hggraph.nn.ohem import OhemCrossEntropy as OhemCrossEntropy
from hggraph.nn.output_loss import OutputLoss as OutputLoss
from hggraph.nn.py_conv import PyConv2d as PyConv2d
from hggraph.nn.py_conv import PyConv3d as PyConv3d
from hggraph.nn.pyramid_pooling import PyramidPooling as PyramidPooling
from hggraph.nn.region_embedding import RegionEmbedding as RegionEmbedding
from hggraph.nn.region_loss import RegionLoss as RegionLoss
from hggraph.nn.road_loss import OrientationLoss as OrientationLoss
from hggraph.nn.road_loss import SoftIoU as SoftIoU
from hggraph.nn.saliency_loss import SaliencyLoss as SaliencyLoss
from hggraph.nn.semantic_head import SemanticHead as SemanticHead
from hggraph.nn.spline_conv import SplineConv as SplineConv
from hggraph.nn.unity_head import UnityHead as UnityHead
