"""ONNX operators as tensor expressions, by family."""
