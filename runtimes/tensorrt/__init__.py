"""Engines of TensorRT and TensorRT-RTX: which one is installed, and what it can do."""
