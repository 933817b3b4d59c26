"""Sequences to work units, and what labeling them will cost."""
