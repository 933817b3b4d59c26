"""Show a label set in the browser, as one page with a sample or by a local server."""
