"""Make: architectures, checkpoints, BatchNorm folding, ONNX export, pipeline, command line."""

__version__ = "0.1.0"
