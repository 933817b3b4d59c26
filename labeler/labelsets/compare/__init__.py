"""Compare two label sets over the same rows."""
