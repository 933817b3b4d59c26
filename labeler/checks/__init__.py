"""Looking into label sets: what is in them, whether it is right, how teachers differ."""
