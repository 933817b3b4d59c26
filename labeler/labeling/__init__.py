"""Make label sets: run a teacher over inputs and write what it says."""
