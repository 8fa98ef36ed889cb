"""From a module to a proven ONNX graph: capture, fold, export, simplify, check."""
