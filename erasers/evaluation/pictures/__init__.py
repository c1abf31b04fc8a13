"""Sets of pictures compared without a judge."""
