"""Show what a label set contains."""
