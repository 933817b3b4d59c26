"""Teacher, baselines and students side by side on one page."""
