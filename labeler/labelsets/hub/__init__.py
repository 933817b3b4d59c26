"""Share label sets: the Hugging Face Hub, and artifacts of experiment trackers."""
