"""Scenes, and maps of them: predictions, embeddings and missing layers, larger than memory and georeferenced."""
