"""Types, scalar expressions, the tensor program, loop kernels and the plan."""
