"""Schedules: checked rewrites of loop kernels, and the rules that choose them."""
