"""Jinja2 frames of the files that fusile writes."""
