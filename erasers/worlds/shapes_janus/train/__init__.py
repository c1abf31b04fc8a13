"""Training of `shapes-janus`, in stages that can be resumed: `python -m erasers.worlds.shapes_janus.train`."""
