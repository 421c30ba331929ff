"""Exporting the model and serving it."""
