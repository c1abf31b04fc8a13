"""Methods: one file each, or one folder where a method has parts of its own."""
