"""Work on finished label sets: check, inspect, compare, curate, rewrite and share them."""
