"""`shapes-sd3`."""
