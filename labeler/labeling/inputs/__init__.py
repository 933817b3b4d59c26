"""What to label: files, folders, URLs and streams, to records."""
