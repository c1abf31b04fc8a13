"""Folders of erased pipelines: how they are written, and the record that they carry."""
