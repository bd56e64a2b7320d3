"""Tools around a compiled model: verify, bench, explain, reduce."""
