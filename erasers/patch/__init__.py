"""Patches: small, reversible changes of a pipeline, and their files."""

from erasers.patch.patch import Patch, PatchError, applied_patches

__all__ = ["Patch", "PatchError", "applied_patches"]
