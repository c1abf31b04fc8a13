"""The report of one erasure."""
