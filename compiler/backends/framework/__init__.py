"""Framework backends: the canonical Graph printed as PyTorch or Keras source, with one weights file for both."""
