"""Training of edits: the loop, what is trained, and what it will cost."""
