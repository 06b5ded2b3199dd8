"""Sphinx configuration. The reference pages are generated from the code before each build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from timmscope_registry.versions import __version__  # noqa: E402

project = "timmscope"
author = "The timmscope authors"
copyright = "The timmscope authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings write `name` for code; if it names an object, it becomes a link.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "timmscope"
html_copy_source = False
html_show_sphinx = False


def _write_reference(app: Sphinx) -> None:
    """Generate the reference; what cannot be described is a warning, so the build fails."""
    from _generate import generate
    from sphinx.util.logging import getLogger

    for problem in generate(HERE / "reference" / "generated"):
        getLogger(__name__).warning("reference: %s", problem)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _write_reference)
