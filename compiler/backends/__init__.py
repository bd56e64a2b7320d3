"""Printers: native code, Numba, PyTorch, Keras and ONNX."""
