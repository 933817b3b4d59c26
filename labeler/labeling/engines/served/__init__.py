"""A teacher behind a server of the completions API."""
