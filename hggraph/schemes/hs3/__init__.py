"""HS3: hierarchical supervision with the right classes (Borse et al., *HS3*, BMVC 2021)."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.schemes.hs3.clustering import constant_ratio as constant_ratio
from hggraph.schemes.hs3.clustering import kmeans_groupings as kmeans_groupings
from hggraph.schemes.hs3.clustering import spectral_groupings as spectral_groupings
from hggraph.schemes.hs3.grouping import Grouping as Grouping
from hggraph.schemes.hs3.grouping import read_groupings as read_groupings
from hggraph.schemes.hs3.grouping import write_groupings as write_groupings
from hggraph.schemes.hs3.loss import HS3Loss as HS3Loss
from hggraph.schemes.hs3.region_tap import majority_labels as majority_labels
from hggraph.schemes.hs3.tapped import TappedNetwork as TappedNetwork
from hggraph.schemes.hs3.tapped import tapped as tapped
from hggraph.schemes.hs3.trade_off import TradeOff as TradeOff
from hggraph.schemes.hs3.trade_off import at_angle as at_angle
from hggraph.schemes.hs3.trade_off import equal_ratio as equal_ratio
from hggraph.schemes.hs3.trade_off import mean_iou as mean_iou
from hggraph.schemes.hs3.trade_off import trade_off as trade_off
