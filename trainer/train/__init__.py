"""One training run: from the flags to the trained model."""
