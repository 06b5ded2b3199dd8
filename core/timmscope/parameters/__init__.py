"""Parameters with help texts, their text form, and the registered classes that have them.

Techniques are such classes. Models hold some of them too (the defences before their
normalisation), so this package lies below both.
"""

from timmscope.parameters.base import Parameters, registered_entry
from timmscope.parameters.lookup import from_text, registered_class
from timmscope.parameters.origin import origin_of, technique_error

__all__ = [
    "Parameters",
    "from_text",
    "origin_of",
    "registered_class",
    "registered_entry",
    "technique_error",
]
