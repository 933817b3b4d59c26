"""Ask a model for what it may have memorized of its training set."""
