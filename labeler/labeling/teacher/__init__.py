"""The teacher as a folder on disk: tokenizer and identity, no weights loaded."""
