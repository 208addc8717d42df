"""Pictures of what clustering and region graphs do to an image, and of what networks see in it."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.viz.affinity_figure import affinity_figure as affinity_figure
from hggraph.viz.error_figure import error_figure as error_figure
from hggraph.viz.focus_figure import focus_figure as focus_figure
from hggraph.viz.mask_figure import mask_figure as mask_figure
from hggraph.viz.page import save_figure as save_figure
from hggraph.viz.prediction_figure import prediction_figure as prediction_figure
from hggraph.viz.region_figure import region_figure as region_figure
from hggraph.viz.road_figure import road_figure as road_figure
from hggraph.viz.trade_off_figure import trade_off_figure as trade_off_figure
from hggraph.viz.unity_figure import unity_figure as unity_figure
