"""What comes in and goes out: image files, graph files, and writing that leaves no half files."""

import hggraph._pyg  # noqa: F401  (first: it silences one warning)
from hggraph._files import write_atomically as write_atomically
from hggraph.data.graph_file import load_graph as load_graph
from hggraph.data.graph_file import save_graph as save_graph
from hggraph.data.image import ImageError as ImageError
from hggraph.data.image import list_images as list_images
from hggraph.data.image import load_attention as load_attention
from hggraph.data.image import load_image as load_image
from hggraph.data.image import sample_photo as sample_photo
