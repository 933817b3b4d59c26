"""Work on finished label sets: look, check, choose, rewrite, share."""
