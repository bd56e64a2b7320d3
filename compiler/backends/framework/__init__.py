"""Framework backends: the canonical Graph as PyTorch or Keras source, with one weights file for both."""
