"""What is measured on predictions: states are exact sums, so any number of processes gives the same result."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.metrics.boundary import BoundaryF as BoundaryF
from hggraph.metrics.boundary import boundary_map as boundary_map
from hggraph.metrics.classification import TopKAccuracy as TopKAccuracy
from hggraph.metrics.confusion import ConfusionMatrix as ConfusionMatrix
from hggraph.metrics.confusion import MeanIoU as MeanIoU
from hggraph.metrics.detection import CocoAP as CocoAP
from hggraph.metrics.level_iou import LevelIoU as LevelIoU
from hggraph.metrics.region_measures import compare_regions as compare_regions
from hggraph.metrics.region_measures import describe_regions as describe_regions
from hggraph.metrics.region_measures import majority_labels as majority_labels
from hggraph.metrics.region_quality import RegionQuality as RegionQuality
from hggraph.metrics.road import APLS as APLS
from hggraph.metrics.road import PathSimilarity as PathSimilarity
from hggraph.metrics.road import path_similarity as path_similarity
from hggraph.metrics.road_routes import Roads as Roads
from hggraph.metrics.saliency import SaliencyMetrics as SaliencyMetrics
from hggraph.metrics.structure import structure_measure as structure_measure
