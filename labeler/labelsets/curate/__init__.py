"""Select the rows of a label set to train on: rules, views of the rows left, and a report."""
