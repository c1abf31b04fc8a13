"""Training of `shapes-sd3`, in stages that can be resumed: `python -m erasers.worlds.shapes_sd3.train`."""
