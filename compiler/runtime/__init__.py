"""Running compiled models: module loading, the artefact cache, workers and host values."""
