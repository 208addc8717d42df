"""Training and evaluation, on Lightning."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.engine.checkpoint import SafeCheckpointIO as SafeCheckpointIO
from hggraph.engine.checkpoint import latest_checkpoint as latest_checkpoint
from hggraph.engine.classification import ClassificationTask as ClassificationTask
from hggraph.engine.data_module import ImageData as ImageData
from hggraph.engine.detection import DetectionTask as DetectionTask
from hggraph.engine.model_folder import ModelFolder as ModelFolder
from hggraph.engine.random_state import RandomState as RandomState
from hggraph.engine.regions import RegionTask as RegionTask
from hggraph.engine.segmentation import SegmentationTask as SegmentationTask
from hggraph.engine.task import Task as Task
from hggraph.inference import load_clusterer as load_clusterer
