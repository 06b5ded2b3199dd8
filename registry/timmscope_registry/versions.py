"""The version of timmscope, and the versions of other packages.

The package holds its own number. The metadata of installed distributions cannot be trusted with it,
because a foreign distribution that calls itself timmscope may come first on `sys.path`.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
"""Version of timmscope."""


@cache
def package_version(name: str) -> str | None:
    """Return the version of a package by the name of its distribution; None if it is missing."""
    if name == "timmscope":
        return __version__
    try:
        return version(name)  # parses a file, which takes as long as a small model's forward pass
    except PackageNotFoundError:
        return None
