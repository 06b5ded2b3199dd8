"""``timmscope run TECHNIQUE`` runs a technique of any plugin, with its fields as flags."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Argument, Group, Parameter, ValidationError

from timmscope.cli import output
from timmscope.cli.invoke import call
from timmscope_registry import (
    FAMILIES,
    Entry,
    ParameterError,
    PluginError,
    TechniqueSpec,
    get_registry,
)
from timmscope_registry.plugin_faults import described, fault, visible

HELP = ("--help", "-h")

app = App(
    name="run",
    help="Run a technique on a model; `timmscope run TECHNIQUE --help` shows its parameters.",
    help_flags=(),
    version_flags=(),
    end_of_options_delimiter="",  # passed on to the technique's own command
)


@app.default
def run(*tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> None:
    """Run a technique, or list all techniques if none is named."""
    if not tokens or tokens[0] in HELP:
        _list()
        return
    name, *rest = tokens
    if name.startswith("-"):
        raise ParameterError(
            f"the technique comes before its flags: timmscope run TECHNIQUE {name} …"
        )
    entry = get_registry().technique(name)
    try:
        _run(entry, name, rest)
    except Exception as error:
        error.add_note(f"in {described(entry)}")
        raise


def _run(entry: Entry[TechniqueSpec], name: str, rest: list[str]) -> None:
    """Make a technique's command from its fields and run it."""
    from pydantic import ValidationError as PartError

    from timmscope.cli import flags, technique_command
    from timmscope.techniques import technique

    kind = technique(entry.id)
    program = f"timmscope run {name}"
    function = technique_command.command(kind, entry.spec.name)
    command = App(
        name=program,
        usage=flags.usage(program, function),
        version_flags=(),
        suppress_keyboard_interrupt=False,
        help_format="plaintext",
        default_parameter=Parameter(negative=""),
        group_arguments=Group("What to work on", sort_key=1),
        group_parameters=Group("How to run", sort_key=3),
        help_epilogue=visible(f"Source: {entry.spec.paper}") if entry.spec.paper else None,
    )
    command["--help"].group = Group("How to run", sort_key=3)
    command.default(function)
    try:
        call(command, rest)
    except ValidationError as error:
        if error.argument is None:
            raise
        if _given(error.argument):
            if not isinstance(error.__cause__, PartError):
                raise
            first = error.__cause__.errors()[0]
            flag = ".".join(map(str, [error.argument.name, *first["loc"]]))
            raise ParameterError(f"{flag} is {first['input']!r}: {first['msg']}") from error
        did = f"has a default for {error.argument.name} that does not match its type"
        raise PluginError(fault(entry, did)) from error


def _given(argument: Argument) -> bool:
    """Whether the command line gives a parameter, or a part of it, a value."""
    return bool(argument.tokens) or any(map(_given, argument.children))


def _list() -> None:
    """Print all techniques by family without importing them."""
    entries = get_registry().techniques()
    names = [entry.spec.name for entry in entries]
    output.say("usage: timmscope run TECHNIQUE …\n")
    output.table(
        ("technique", "family", "what it does"),
        [
            (
                entry.spec.name if names.count(entry.spec.name) == 1 else entry.id,
                entry.spec.family,
                entry.spec.summary,
            )
            for family in FAMILIES
            for entry in entries
            if entry.spec.family == family
        ],
        keep=("technique", "family"),
        styles={"technique": "cyan"},
    )
    output.say("\n`timmscope run TECHNIQUE --help` shows a technique's arguments and parameters")
