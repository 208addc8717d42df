"""Prediction with trained networks: images, folders of them and rasters. Needs no training stack."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph.inference.folder import predict_folder as predict_folder
from hggraph.inference.outputs import save_labels as save_labels
from hggraph.inference.outputs import save_overlay as save_overlay
from hggraph.inference.outputs import save_probabilities as save_probabilities
from hggraph.inference.predictor import Predictor as Predictor
from hggraph.inference.predictor import to_labels as to_labels
from hggraph.inference.raster import predict_raster as predict_raster
from hggraph.inference.trained import Trained as Trained
from hggraph.inference.trained import for_inference as for_inference
from hggraph.inference.trained import load_clusterer as load_clusterer
from hggraph.inference.trained import load_trained as load_trained
