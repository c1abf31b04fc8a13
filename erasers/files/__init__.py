"""Files: written whole, read within limits, named by their content."""
