"""Networks, on timm's backbones and with their pretrained weights."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.models._network import Regions as Regions
from hggraph.models.fold import fold_batch_norm as fold_batch_norm
from hggraph.models.hg_resnet import HGResNet as HGResNet
from hggraph.models.hg_resnet import hg_resnet as hg_resnet
from hggraph.models.weights import load_weights as load_weights
from hggraph.models.weights import save_weights as save_weights
