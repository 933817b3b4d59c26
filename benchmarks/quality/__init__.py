"""Q1 and Q2: the gain from soft labels, and the cost of storing and truncating them."""
