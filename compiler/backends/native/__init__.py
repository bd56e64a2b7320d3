"""The native backend: LLVM IR for kernels and plan, and the module that runs them."""
