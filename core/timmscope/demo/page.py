"""From the report's values to one HTML file that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from timmscope.demo.view import Page
from timmscope_registry import TimmscopeError


def write_page(page: Page, path: Path) -> Path:
    """Write the report; whole or not at all.

    Raises:
        TimmscopeError: the file cannot be written.
    """
    text = render(page)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        raise TimmscopeError(f"cannot write the report {path}: {error}") from error
    return path


def render(page: Page) -> str:
    """The report as HTML; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("timmscope.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)
