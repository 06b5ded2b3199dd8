"""Patches: the parts of images that a unit responds to most, cut out, drawn and explained."""

from .attribute_patches import attribute_patches
from .patch import Patch, top_patches
from .unit_patches import UnitPatches, unit_patches

__all__ = ["Patch", "UnitPatches", "attribute_patches", "top_patches", "unit_patches"]
