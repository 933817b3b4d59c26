"""On-policy rounds: the student answers, the teacher labels its answers, the student learns."""
