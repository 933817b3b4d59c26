"""Rebuild a damaged label set around its good shards."""
