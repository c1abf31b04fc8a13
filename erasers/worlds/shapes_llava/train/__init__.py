"""Training of `shapes-llava`, which can be resumed: `python -m erasers.worlds.shapes_llava.train`."""
