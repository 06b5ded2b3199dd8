"""Cuts out, draws and explains the patches of images that activate units most."""

from .unit_patches import UnitPatches, unit_patches

__all__ = ["UnitPatches", "unit_patches"]
