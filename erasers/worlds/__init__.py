"""Worlds: small, truly trained models that come with a judge."""
