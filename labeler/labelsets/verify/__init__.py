"""Check a label set: its files, rows and text, and its labels against the teacher."""
