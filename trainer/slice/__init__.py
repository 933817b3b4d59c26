"""Make a student by leaving layers and feed-forward neurons of the teacher out."""
