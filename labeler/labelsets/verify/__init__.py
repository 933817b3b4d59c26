"""Check a label set, and that its labels are the teacher's."""
