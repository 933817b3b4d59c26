"""Which rows of a label set to train on: rules, views of what they leave, and a report."""
