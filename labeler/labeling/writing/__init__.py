"""Labels to shards on disk, and the end of a label set."""
