"""Loop kernels and plans as Python source for Numba: what its CPU and CUDA targets share."""
