"""Convert label sets to the files of other tools, and back."""
