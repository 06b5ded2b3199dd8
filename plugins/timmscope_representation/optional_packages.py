"""Checks for the packages of the extra `embed`, which only some parameters need.

A technique that always needs a package says so in `needs` of its spec; these checks are for the
others, which work without it as long as the parameters do not ask for it.
"""

from __future__ import annotations

import importlib.util

from timmscope import PluginError


def require_package(module: str, package: str, what: str) -> None:
    """Refuse to continue without a package.

    Args:
        module: name to import.
        package: name to install.
        what: whatever needs it, for the message.

    Raises:
        PluginError: the package is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise PluginError(
            f"{what} needs {package}, which is not installed: "
            "python -m pip install 'timmscope[embed]'"
        )
