"""Compare the answers of students with those of their teacher, on the same prompts."""
