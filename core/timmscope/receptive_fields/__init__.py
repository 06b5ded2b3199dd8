"""Receptive fields of any model: which pixels a layer's cells see."""

from timmscope.receptive_fields.compute import receptive_field
from timmscope.receptive_fields.field import KINDS, Box, FieldKind, ReceptiveField

__all__ = ["KINDS", "Box", "FieldKind", "ReceptiveField", "receptive_field"]
