"""Render records to the teacher's token ids and the spans to label."""
