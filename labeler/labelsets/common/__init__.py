"""What several commands on finished label sets share."""
