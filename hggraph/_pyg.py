"""PyG, imported without the warning that its own use of `torch.jit.script` raises."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=FutureWarning)
    import torch_geometric.nn
    import torch_geometric.transforms  # noqa: F401
