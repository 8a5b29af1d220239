"""Reads Hugging Face model folders: configuration, tensors and their formats.

Everything here treats the folder as untrusted: nothing is executed, unpickled or mapped into memory, and whatever is
wrong with a file becomes a ModelError that names the file.
"""

from dashinfer_lite.weights.folder import ModelFolder
from dashinfer_lite.weights.reader import WeightReader, open_weights, to_float32
from dashinfer_lite.weights.safetensors import SafetensorsFile, TensorInfo

__all__ = ["ModelFolder", "SafetensorsFile", "TensorInfo", "WeightReader", "open_weights", "to_float32"]
