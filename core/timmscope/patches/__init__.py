"""Patches: the parts of images that a unit responds to most, cut out, drawn and explained."""

from .unit_patches import UnitPatches, unit_patches

__all__ = ["UnitPatches", "unit_patches"]
