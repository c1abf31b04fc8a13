"""LECO: LoRAs that learn from pairs of prompts, and the files of other trainers that describe them."""

from erasers.methods.leco.eraser import LECO
from erasers.methods.leco.pair import Pair
from erasers.methods.leco.recipe import Recipe, read_recipe

__all__ = ["LECO", "Pair", "Recipe", "read_recipe"]
