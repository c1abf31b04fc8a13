"""Trains the embedded model from nothing but the renderer: `python -m erasers.worlds.shapes.train --help`."""
