"""Runs a cyclopts application so that it raises its errors and prints help to the real stdout."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

from timmscope.cli import output


def call(app: App, tokens: Sequence[str]) -> None:
    """Run the command that the command-line tokens name; its errors are raised for `main`."""
    app(
        tokens,
        console=output.console(piped_width=None),  # for help
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
