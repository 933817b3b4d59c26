"""A labeling run from its first unit to its last, and all that can stop it."""
