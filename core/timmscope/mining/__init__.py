"""Mines: runs a model over a data set once and writes a store; a killed pass can be resumed."""

from .merge import merge
from .mine import mine, resume
from .plan import Plan, bytes_per_image, default_layers
from .verify import Damage, Report, verify

__all__ = [
    "Damage",
    "Plan",
    "Report",
    "bytes_per_image",
    "default_layers",
    "merge",
    "mine",
    "resume",
    "verify",
]
