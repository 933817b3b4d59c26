"""Label sets for others: the Hugging Face Hub, and artifacts of experiment trackers."""
