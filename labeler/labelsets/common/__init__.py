"""Code that the commands on finished label sets share."""
