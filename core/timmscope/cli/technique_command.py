"""Makes a technique's command: flags for its fields and for the arguments of its call.

``timmscope run`` imports this module after a technique is chosen, because it imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from cyclopts import Parameter

from timmscope.cli import flags, over, parameters
from timmscope.cli.save_result import default_folder, save_and_print
from timmscope.cli.text import plain_text, sections
from timmscope.cli.typed_objective import typed_objective
from timmscope.models import load_model
from timmscope.number_list import is_whole
from timmscope.techniques.arguments import Argument, call_arguments
from timmscope.techniques.over.base import PerImageTechnique
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope.store import Store
    from timmscope.techniques import Technique

EMPTY = inspect.Parameter.empty
ONE = inspect.Parameter.POSITIONAL_ONLY
MANY = inspect.Parameter.VAR_POSITIONAL
FLAG = inspect.Parameter.KEYWORD_ONLY
SHORT = {"target": "-t", "layer": "-l", "style": "-s"}
"""Flags that have a second name."""


@dataclass(frozen=True)
class CliArgument:
    """How the command line takes an argument of a technique's call.

    Attributes:
        type: type of the value. The flag of a tuple may be repeated, and its name is singular.
        place: `ONE` or `MANY` for positional arguments, or `FLAG`.
        read: converts the value, and the values of `extra_flags`, to the call's argument.
        extra_flags: further flags that `read` takes, with their types.
        name: name on the command line; by default the argument's name.
        rank: the result's folder is named after the argument with the highest rank.
    """

    type: Any
    place: Any = FLAG
    read: Callable[..., Any] = lambda given: given
    extra_flags: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    rank: int = 0


def _store(path: Path, metadata: Path | None = None) -> Store:
    """Open a store, optionally with the columns of a CSV file."""
    from timmscope.store import Store

    store = Store.open(path)
    return store if metadata is None else store.with_metadata(metadata)


def _stores(paths: Sequence[Path], metadata: Path | None = None) -> list[Store]:
    return [_store(path, metadata) for path in paths]


def _classes(given: Sequence[str]) -> int | str | list[int | str]:
    """Return one class for all images, or a list with one per image."""
    classes = [int(text) if is_whole(text) else text for text in given]
    return classes if len(classes) > 1 else classes[0]


def _model(spec: str, device: str | None = None, defence: Sequence[str] = ()) -> HookedModel:
    return load_model(spec, device=device, defences=defence)


_MODEL = {"device": parameters.Device, "defence": parameters.Defences}
_METADATA = {"metadata": parameters.Metadata}
_LAYERS = Annotated[
    parameters.Layers,
    Parameter(
        help="Layer of a store; may be repeated, or several separated by commas, for techniques "
        "that read several. By default the only one that all stores hold, or all."
    ),
]
KINDS = {
    "model": CliArgument(parameters.Model, ONE, _model, _MODEL, name="model", rank=1),
    "objective": CliArgument(str, read=typed_objective, name="target", rank=2),
    "objective to reach": CliArgument(str, read=typed_objective),
    "other images": CliArgument(tuple[Path, ...], read=list, rank=3),
    "images": CliArgument(parameters.ImageFile, MANY, list, rank=4),
    "image set": CliArgument(str, ONE, rank=4),
    "held out": CliArgument(float | str),
    "optional images": CliArgument(Path, MANY, list, rank=4),
    "image": CliArgument(Path, ONE, rank=4),
    "queries": CliArgument(Path, MANY, list, name="queries", rank=4),
    "store": CliArgument(parameters.StorePath, ONE, _store, _METADATA, name="store", rank=5),
    "stores": CliArgument(parameters.StorePaths, MANY, _stores, _METADATA, name="stores", rank=5),
    "classes": CliArgument(tuple[str, ...], read=_classes),
    "layers": CliArgument(_LAYERS, read=parameters.split_names),
    "where": CliArgument(parameters.Where),
    "location": CliArgument(str, name="images"),
    "locations": CliArgument(tuple[str, ...], read=list, name="images"),
}
"""How each kind of argument is taken; those of a plain type need no entry, nor does `output`, the
folder of the result."""
CliArguments = list[tuple[Argument, CliArgument]]


def command(technique: type[Technique], title: str) -> Callable[..., None]:
    """Return the command of a technique: it makes the technique, calls it and saves the result.

    Raises:
        PluginError: a field's flag equals another flag of the command.
    """
    asked = list(call_arguments(technique))
    folders = [argument.parameter.name for argument in asked if argument.kind == "output"]
    arguments = [(each, _cli_argument(each)) for each in asked if each.kind != "output"]
    further = {name: kind for _, how in arguments for name, kind in how.extra_flags.items()}
    further["output_dir"] = Annotated[parameters.Output, Parameter(help=_where_to_write(arguments))]
    own = [_parameter(argument, how) for argument, how in arguments]
    own += [
        inspect.Parameter(name, FLAG, default=_nothing(kind), annotation=kind)
        for name, kind in further.items()
    ]
    own += [inspect.Parameter("json", FLAG, default=False, annotation=parameters.Record)]
    own += over.over_flags(technique)
    every = sorted([*own, *flags.of_fields(technique, title, own)], key=lambda each: each.kind)
    signature = inspect.Signature(every)

    def run(*positional: Any, **named: Any) -> None:
        given = signature.bind(*positional, **named).arguments
        made = technique(**{name: given[name] for name in technique.model_fields if name in given})
        if isinstance(made, PerImageTechnique):
            name = made.over_argument
            over.require_one_input(given, name)
            if given.get("over") is not None:
                others = [each for each in arguments if each[0].parameter.name != name]
                over.run_over(made, given, _values(others, given))
                return
        folder = given.get("output_dir") or default_folder(made.title(), _subject(arguments, given))
        values = _values(arguments, given) | dict.fromkeys(folders, folder)
        result = made(**values)  # type: ignore[operator]
        save_and_print(result, folder, as_json=given.get("json", False))

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in every}
    about = inspect.cleandoc(technique.__doc__ or "")
    run.__doc__ = plain_text(sections(about)[""])
    return run


def _cli_argument(argument: Argument) -> CliArgument:
    """Return how an argument is taken: as its kind says, or by a flag of its plain type."""
    parameter = argument.parameter
    how = KINDS[argument.kind] if argument.kind else CliArgument(_as_tuple(parameter.annotation))
    if parameter.kind is FLAG:
        how = replace(how, place=FLAG, rank=0)
    return replace(how, name=how.name or parameter.name.removesuffix("s" * _is_repeated(how)))


def _is_repeated(how: CliArgument) -> bool:
    """Return whether the argument's flag may be repeated."""
    return _nothing(how.type) == ()


def _nothing(kind: Any) -> tuple[()] | None:
    """Return the default of an optional flag: no values if it may be repeated, else None."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return () if get_origin(plain) is tuple else None


def _as_tuple(hint: Any) -> Any:
    """Return `Sequence[float] | None` as the tuple of a repeated flag; other types unchanged."""
    sequences = [part for part in (hint, *get_args(hint)) if get_origin(part) is Sequence]
    return GenericAlias(tuple, (*get_args(sequences[0]), ...)) if sequences else hint


def _parameter(argument: Argument, how: CliArgument) -> inspect.Parameter:
    """Return an argument as a parameter of the command's signature."""
    default = argument.parameter.default
    if how.place is MANY:
        default = EMPTY
    elif default is None and _is_repeated(how):
        default = ()
    kind = how.type
    if get_origin(kind) is not Annotated:  # then the type has no help text
        kind = kind | None if default is None else kind
        if how.place is FLAG:
            alias = SHORT.get(how.name)
            return flags.parameter(how.name, kind, default, argument.about, alias=alias)
        kind = Annotated[kind, Parameter(help=argument.about)]
    return inspect.Parameter(how.name, how.place, default=default, annotation=kind)


def _values(arguments: CliArguments, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call's arguments by their names in Python."""
    for argument, how in arguments:
        required = argument.parameter.default is EMPTY
        if required and how.place is MANY and not given.get(how.name):
            what = how.name.removesuffix("s")
            raise ParameterError(f"no {what} given: name at least one", parameter=how.name)
    values = {}
    for argument, how in arguments:
        value = given.get(how.name)
        if value is None or value == ():
            values[argument.parameter.name] = argument.parameter.default
        else:
            extra = {name: given[name] for name in how.extra_flags if name in given}
            values[argument.parameter.name] = how.read(value, **extra)
    return values


def _subject(arguments: CliArguments, given: Mapping[str, Any]) -> str:
    """Return what the result's folder is named after: the first image, or all stores."""
    best = max((how for _, how in arguments if given.get(how.name)), key=lambda how: how.rank)
    values = given[best.name] if isinstance(given[best.name], tuple) else (given[best.name],)
    names = [value.stem if isinstance(value, Path) else str(value) for value in values]
    return "-".join(names if best.name == "stores" else names[:1])


def _where_to_write(arguments: CliArguments) -> str:
    """Return the help of the flag for the output folder."""
    subjects = []
    for argument, how in sorted(arguments, key=lambda pair: -pair[1].rank):
        subjects.append(how.name.removesuffix("s").upper())
        if argument.parameter.default is EMPTY:
            break
    return f"Where to write; by default timmscope-out/TECHNIQUE-{' or -'.join(subjects)}."
