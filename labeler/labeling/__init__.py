"""Make label sets: run a teacher over inputs and store its distributions."""
