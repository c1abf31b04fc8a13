"""Prompts and what text encoders make of them."""
