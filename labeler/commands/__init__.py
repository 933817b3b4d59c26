"""The commands of `labeler` and their help. Each imports its work when it runs."""
