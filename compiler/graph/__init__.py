"""Passes on the canonical graph: clean up, recognise, outline, lay out."""
