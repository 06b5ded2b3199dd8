"""How an application of commands is called: errors are raised, help goes to the real stdout."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

from timmscope.cli import output


def call(app: App, tokens: Sequence[str]) -> None:
    """Run the command that the tokens name; its errors are for `main` to tell."""
    app(
        tokens,
        console=output.console(piped_width=None),  # of help
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
