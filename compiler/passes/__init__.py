"""From tensor programs to legal loop kernels: infer, fuse, lower, simplify, plan."""
