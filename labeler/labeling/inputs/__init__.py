"""Find the inputs (files, folders, URLs, streams, label sets) and read their records."""
