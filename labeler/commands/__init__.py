"""What each command of `labeler` takes and says. The work is done elsewhere, and imported late."""
