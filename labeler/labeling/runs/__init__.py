"""A labeling run: its start, its units, its locks and signals."""
