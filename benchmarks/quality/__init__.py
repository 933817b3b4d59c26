"""Q1 and Q2: what soft labels are worth, and what it costs that they are stored and cut off."""
