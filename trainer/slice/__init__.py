"""Make a student from some of the teacher's layers and feed-forward neurons."""
