"""`labeler view`: a label set in the browser, as one page of a sample or as a local server."""
