"""Records to the token ids that the teacher reads, and the spans where labels are wanted."""
