"""`trainer export`: a student as a file for another runtime, measured there."""
