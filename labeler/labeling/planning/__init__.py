"""Sequences to work units, and the bytes and memory that labeling them needs."""
