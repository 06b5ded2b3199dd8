"""The command-line application: global flags, commands, and errors as one line with exit status.

Exit status: 0 success; 2 wrong input, a machine at its limits (disk, memory), or something found
wrong (`verify`, `doctor`); 1 a defect of timmscope or of a plugin; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownOptionError,
)

from timmscope.cli import output
from timmscope.cli.invoke import call
from timmscope.cli.text import plain_help
from timmscope.cli.trust import agree, ask
from timmscope.progress import RichReporter, reporting
from timmscope.trust import asking
from timmscope_registry import (
    ParameterError,
    PluginError,
    Registry,
    TimmscopeError,
    get_registry,
    set_registry,
)
from timmscope_registry.out_of_memory import is_out_of_memory
from timmscope_registry.versions import __version__

GLOBAL = Group("Everywhere", sort_key=90)
WORK = Group("Work", sort_key=1)
LOOK = Group("Look", sort_key=2)
MAINTAIN = Group("Maintenance", sort_key=3)

app = App(
    name="timmscope",
    help="A microscope for vision models: see what any timm model looks for, why it decides, and "
    "how it breaks.",
    suppress_keyboard_interrupt=False,
    version=f"timmscope {__version__}",
    default_parameter=Parameter(negative=""),
    help_format="plaintext",
    help_epilogue="timmscope COMMAND --help explains a command; timmscope run lists techniques.",
)
HELP = ("--help", "-h")
COMMANDS = (
    ("atlas", WORK, "Show each unit of a layer: an image made for it, beside its top patches."),
    ("compare", WORK, "Explain images by several techniques and layers, side by side."),
    ("demo", WORK, "Mine 300 photographs and write a report of every kind of technique."),
    ("evaluate", WORK, "Compare attribution techniques on many images by several metrics."),
    ("mine", WORK, "Run a model over images and keep its activations in a store."),
    ("merge", WORK, "Merge the stores of the parts of one pass."),
    ("robustness", WORK, "Judge a model by attacks, alone and behind defences, and check them."),
    ("run", WORK, "Run a technique: explain, synthesise, attack, stylise, represent."),
    ("layers", LOOK, "List a model's layers, with layout, grid and channels."),
    ("search", LOOK, "Find the images of a store nearest to an image, or highest in an objective."),
    ("sheet", LOOK, "Draw saved results of one kind side by side, with what differs as captions."),
    ("stats", LOOK, "Find dead, sparse, saturated, redundant and selective units of a layer."),
    ("top", LOOK, "Show the images of a store that activate a unit most."),
    ("doctor", MAINTAIN, "Explain problems with plugins and packages, and what to do."),
    ("index", MAINTAIN, "Build, extend, shrink, tune or show the index of a layer."),
    ("plugins", MAINTAIN, "List techniques, collectors, sources, backends; create a plugin."),
    ("verify", MAINTAIN, "Check every shard of a store; repair it with --repair."),
)
for name, group, summary in COMMANDS:
    if name in ("run", "index", "plugins"):  # applications with subcommands
        app.command(f"timmscope.cli.{name}:app", name=name, group=group, help=summary)
    else:
        path = f"timmscope.cli.{name}:{name}"
        app.command(path, name=name, group=group, help=summary, help_flags=HELP)
app["--help"].group = app["--version"].group = GLOBAL
app.meta.suppress_keyboard_interrupt = False  # `main` reports it
app.meta.help_flags = app.meta.version_flags = ()  # left to the command, so that `run` sees them

SHOW_PROBLEMS = ("plugins", "doctor")
"""Commands that also run with a broken plugin file, because they show what is wrong with it."""


@app.meta.default
@plain_help
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(group=GLOBAL, negative="", show_default=False)] = False,
    block: Annotated[
        tuple[str, ...], Parameter(group=GLOBAL, negative="", show_default=False)
    ] = (),
    plugin: Annotated[
        tuple[Path, ...], Parameter(group=GLOBAL, negative="", show_default=False)
    ] = (),
    trust: Annotated[bool, Parameter(group=GLOBAL, negative="", show_default=False)] = False,
) -> None:
    """Run a command with the global flags.

    Parameters
    ----------
    debug
        Show the traceback of an error.
    block
        Plugin not to load: a distribution or ``distribution:entry-point``; may be repeated.
    plugin
        Python file to load as a plugin; may be repeated.
    trust
        Let stores that you have not made open the model and the images that they record, now and
        later.
    """
    if tokens[:1] == ("run",):
        tokens, late_blocks, late_plugins, late_trust = _global_flags(tokens)
        block, plugin = (*block, *late_blocks), (*plugin, *late_plugins)
        trust |= late_trust
    registry = Registry(block=[name for names in block for name in names.split(",")])
    set_registry(registry)
    try:
        for file in plugin:
            try:
                registry.load_file(file)
            except PluginError:
                if not (tokens and tokens[0] in SHOW_PROBLEMS and file.is_file()):
                    raise
        with output.plugin_prints_to_stderr(), asking(agree if trust else ask):
            call(app, tokens)
    except (TimmscopeError, CycloptsError, BrokenPipeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # including a sys.exit in a plugin
        if is_out_of_memory(error):
            raise
        from timmscope.cli.plugin_errors import plugin_at_fault

        failure = plugin_at_fault(error, registry)
        if failure is None:
            raise
        raise failure from error
    finally:
        set_registry(None)


def _global_flags(
    tokens: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Path, ...], bool]:
    """Split off the global flags after ``run``, because cyclopts passes all tokens on to it."""
    rest: list[str] = []
    trust = False
    found: dict[str, list[str]] = {"--block": [], "--plugin": []}
    left = iter(tokens)
    for token in left:
        if token == "--":  # what follows is no flag
            rest += [token, *left]
            break
        flag, equals, value = token.partition("=")
        if flag not in found:
            if token == "--trust":
                trust = True
            elif token != "--debug":  # `main` reads it
                rest.append(token)
            continue
        if not equals and (value := next(left, "")) == "":
            raise ParameterError(f"{flag} requires a value", parameter=flag.lstrip("-"))
        found[flag].append(value)
    return tuple(rest), tuple(found["--block"]), tuple(map(Path, found["--plugin"])), trust


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the command line after the program's name; by default that of the process.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens[: tokens.index("--") if "--" in tokens else None]
    if isinstance(sys.stdout, io.TextIOWrapper):  # for file names that it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _progress(), _warnings_as_lines(debug):
            status = _exit_status(lambda: call(app.meta, tokens))
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except BaseException as error:
        if debug:
            traceback.print_exc()
        status, message = explain(error)
        output.print_stderr(message)
        return status


def _exit_status(run: Callable[[], None]) -> int:
    """Call a function and return the status with which it exits."""
    try:
        run()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the line that is printed for an error."""
    if isinstance(error, TimmscopeError):
        return error.exit_status, f"error: {error}"
    if isinstance(error, CycloptsError):
        return 2, f"error: {_usage_message(error)}"
    if isinstance(error, KeyboardInterrupt):
        where = " ".join(getattr(error, "__notes__", ()))
        return 130, f"interrupted {where}".rstrip()
    if is_out_of_memory(error):
        return 2, (
            "error: out of memory; close other programs, or try a smaller --batch-size or a "
            "smaller model"
        )
    if isinstance(error, OSError) and error.errno is not None:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return 2, f"error: {': '.join([*files, error.strerror or str(error)])}"
    where = " ".join(["", *getattr(error, "__notes__", ())])
    return 1, (
        f"internal error{where}: {type(error).__name__}: {error}; "
        "run again with --debug for the traceback, and report it"
    )


def _usage_message(error: CycloptsError) -> str:
    command = " ".join(error.command_chain or ())
    text = str(error).removeprefix(f'Command "{command}" ')
    text = text.removeprefix("Parameter ").removeprefix("parameter ").replace(", ...", " …")
    if isinstance(error, MissingArgumentError) and error.argument and not error.keyword:
        text = f"{error.argument.name} is missing"
    if text.startswith("Unused Tokens:"):
        text = f"too many arguments: {text.removeprefix('Unused Tokens:').strip(' [].')}"
    if "Did you mean" in text:
        text = text.partition("?")[0] + "?"
    elif isinstance(error, UnknownOptionError):
        text = f"{text.partition('. ')[0]}; put -- before a file whose name begins with a minus"
    if text[:2].istitle():
        text = text[0].lower() + text[1:]
    name = error.app.name[0] if error.app and error.app.name else ""
    program = name if name.startswith("timmscope ") else f"timmscope {command}".strip()
    return f"{text.rstrip('.')} (see `{program} --help`)"


def _progress() -> AbstractContextManager[None]:
    if not sys.stderr.isatty():
        return nullcontext()
    return reporting(RichReporter(output.console(stderr=True)))


@contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """Print each warning as one line, without deprecations; with `debug`, all as Python does."""

    def show(message: Warning | str, category: type[Warning], *where: object) -> None:
        if not issubclass(category, FutureWarning | DeprecationWarning):
            from timmscope.cli.plugin_errors import warning_with_plugin

            text = warning_with_plugin(str(message), sys._getframe(1), get_registry())
            output.print_stderr(f"warning: {text}")

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show  # type: ignore[assignment]
        yield
