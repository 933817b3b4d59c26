"""One training run, from the settings to the trained model."""
