"""Parameters with help texts, their text form, and the registered classes that have them.

Techniques are such classes. Models hold some of them too (the defences before their
normalisation), so this package lies below both.
"""

from timmscope.parameters.base import (
    Parameters,
    origin_of,
    registered_entry,
    technique_error,
)
from timmscope.parameters.lookup import from_text, registered_class
from timmscope.parameters.names import Digests, Meant, NamedValue, Names, meanings, named_values

__all__ = [
    "Digests",
    "Meant",
    "NamedValue",
    "Names",
    "Parameters",
    "from_text",
    "meanings",
    "named_values",
    "origin_of",
    "registered_class",
    "registered_entry",
    "technique_error",
]
