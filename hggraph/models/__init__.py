"""Networks, on timm's backbones and with their pretrained weights."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.models._network import Regions as Regions
from hggraph.models.convert import convert as convert
from hggraph.models.count import Part as Part
from hggraph.models.count import count as count
from hggraph.models.deeplab_v3_plus import deeplab_v3_plus as deeplab_v3_plus
from hggraph.models.export import export_onnx as export_onnx
from hggraph.models.fold import fold_batch_norm as fold_batch_norm
from hggraph.models.gald import gald as gald
from hggraph.models.hg_cnn import hg_cnn as hg_cnn
from hggraph.models.hg_detector import hg_detector as hg_detector
from hggraph.models.hg_hrnet import hg_hrnet as hg_hrnet
from hggraph.models.hg_orientation import hg_orientation as hg_orientation
from hggraph.models.hg_resnet import hg_resnet as hg_resnet
from hggraph.models.hg_resunet import hg_resunet as hg_resunet
from hggraph.models.hg_unity import hg_unity as hg_unity
from hggraph.models.hs3_fuse import hs3_fuse as hs3_fuse
from hggraph.models.pretrained import from_pretrained as from_pretrained
from hggraph.models.pretrained import pretrained_config as pretrained_config
from hggraph.models.pretrained import save_pretrained as save_pretrained
from hggraph.models.pyconv_inception import pyconv_inception as pyconv_inception
from hggraph.models.pyconv_resnet import pyconv_hg_resnet as pyconv_hg_resnet
from hggraph.models.pyconv_resnet import pyconv_resnet as pyconv_resnet
from hggraph.models.pyconv_resnet3d import pyconv_resnet3d as pyconv_resnet3d
from hggraph.models.pyconv_segnet import pyconv_segnet as pyconv_segnet
from hggraph.models.pyconv_ssd import pyconv_ssd as pyconv_ssd
from hggraph.models.specialize_fuse import specialize_fuse as specialize_fuse
from hggraph.models.weights import load_weights as load_weights
from hggraph.models.weights import save_weights as save_weights
