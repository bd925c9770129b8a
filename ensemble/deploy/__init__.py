"""A model used on its own: scores and ONNX."""
