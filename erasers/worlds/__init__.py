"""Worlds: small, truly trained models that come with their words, a judge and all that measuring them takes.

    from erasers import worlds

    worlds.list()  # ["shapes", "shapes-sd3"]
    star = worlds.get("shapes").concept("star")

Neither imports torch. `worlds.MODELS` has small models of transformers of the same pictures.
"""

from erasers.worlds.table import DEFAULT, MODELS, find, get
from erasers.worlds.table import list_worlds as list
from erasers.worlds.world import Clip, World

__all__ = ["DEFAULT", "MODELS", "Clip", "World", "find", "get", "list"]
