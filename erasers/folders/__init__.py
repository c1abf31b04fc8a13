"""Folders of erased pipelines."""
