"""Measure models on held-out labels."""
