"""Run a teacher over text with vLLM and write its soft labels as a label set."""
