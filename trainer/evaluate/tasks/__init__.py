"""Run lm-evaluation-harness on teacher and students, and say what the students keep."""
