"""Training, evaluation and prediction, on Lightning."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.engine.checkpoint import SafeCheckpointIO as SafeCheckpointIO
from hggraph.engine.checkpoint import latest_checkpoint as latest_checkpoint
from hggraph.engine.data_module import ImageData as ImageData
from hggraph.engine.folder import predict_folder as predict_folder
from hggraph.engine.predictor import Predictor as Predictor
from hggraph.engine.random_state import RandomState as RandomState
from hggraph.engine.raster import predict_raster as predict_raster
from hggraph.engine.task import SegmentationTask as SegmentationTask
from hggraph.engine.trained import Trained as Trained
from hggraph.engine.trained import load_run as load_run
