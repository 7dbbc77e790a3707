"""Tasks: an encoder with a head and a loss each, and their Lightning modules; this file imports nothing."""
