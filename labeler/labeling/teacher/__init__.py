"""The teacher as a folder on disk: its tokenizer and its identity, without loading weights."""
