"""Makes a technique's command: flags for its fields, and what its family's call takes.

Imported by ``timmscope run`` once a technique is chosen, so torch is in memory by then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from cyclopts import Parameter

from timmscope.cli import flags, parameters
from timmscope.cli.names import names
from timmscope.cli.save_result import default_folder, deliver
from timmscope.cli.text import plain_text, sections
from timmscope.models import load_model
from timmscope.techniques.arguments import Argument, call_arguments
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.store import Store
    from timmscope.techniques import Technique

EMPTY = inspect.Parameter.empty
ONE = inspect.Parameter.POSITIONAL_ONLY
MANY = inspect.Parameter.VAR_POSITIONAL
FLAG = inspect.Parameter.KEYWORD_ONLY
SHORT = {"target": "-t", "layer": "-l", "style": "-s"}
"""Flags that have a second name."""


@dataclass(frozen=True)
class Asked:
    """How the command line asks for an argument.

    Attributes:
        type: of what is given. A tuple's flag may be repeated, and its name is in the singular.
        place: `ONE` or `MANY` without a flag, or `FLAG`.
        read: makes the argument of what is given, and of the flags `beside` it.
        beside: these flags and their types.
        name: on the command line; by default the argument's own.
        rank: the given argument of the highest rank stands in the name of the result's folder.
    """

    type: Any
    place: Any = FLAG
    read: Callable[..., Any] = lambda given: given
    beside: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    rank: int = 0


def _store(path: Path, metadata: Path | None = None) -> Store:
    """A store, with the columns of a CSV file beside its images where there is one."""
    from timmscope.store import Store

    store = Store.open(path)
    return store if metadata is None else store.with_metadata(metadata)


def _stores(paths: Sequence[Path], metadata: Path | None = None) -> list[Store]:
    return [_store(path, metadata) for path in paths]


def _classes(given: Sequence[str]) -> int | str | list[int | str]:
    """One class for all images, or one for each."""
    classes = [int(text) if text.isdecimal() else text for text in given]
    return classes if len(classes) > 1 else classes[0]


_DEVICE, _METADATA = {"device": parameters.Device}, {"metadata": parameters.Metadata}
_STORES = Annotated[Path, Parameter(help="Stores that timmscope mine made.")]
_LAYERS = Annotated[
    parameters.Layers,
    Parameter(
        help="Layer of a store; may be repeated, or several with commas between, for techniques "
        "that look at several. By default the only one that all stores hold, or all."
    ),
]
KINDS = {
    "model": Asked(parameters.Model, ONE, load_model, _DEVICE, name="model", rank=1),
    "objective": Asked(str, name="target", rank=2),
    "other images": Asked(tuple[Path, ...], read=list, rank=3),
    "images": Asked(parameters.ImageFile, MANY, list, rank=4),
    "optional images": Asked(Path, MANY, list, rank=4),
    "image": Asked(Path, ONE, rank=4),
    "queries": Asked(Path, MANY, list, name="queries", rank=4),
    "store": Asked(parameters.StorePath, ONE, _store, _METADATA, name="store", rank=5),
    "stores": Asked(_STORES, MANY, _stores, _METADATA, name="stores", rank=5),
    "classes": Asked(tuple[str, ...], read=_classes),
    "layers": Asked(_LAYERS, read=names),
    "where": Asked(parameters.Where),
    "location": Asked(str, name="images"),
    "locations": Asked(tuple[str, ...], read=list, name="images"),
}
"""How each kind of argument is asked for; arguments of a plain type need no entry."""
Asking = list[tuple[Argument, Asked]]


def command(technique: type[Technique], title: str) -> Callable[..., None]:
    """The command of a technique: it makes the technique, calls it and saves the result.

    Raises:
        PluginError: a field has the name of another flag, or of another field but for its case.
    """
    asking = [(argument, _asked(argument)) for argument in call_arguments(technique)]
    further = {name: kind for _, how in asking for name, kind in how.beside.items()}
    further["output_dir"] = Annotated[parameters.Output, Parameter(help=_where_to_write(asking))]
    own = [_parameter(argument, how) for argument, how in asking]
    own += [inspect.Parameter(n, FLAG, default=None, annotation=k) for n, k in further.items()]
    own += [inspect.Parameter("json", FLAG, default=False, annotation=parameters.Record)]
    every = sorted([*own, *flags.of_fields(technique, title, own)], key=lambda each: each.kind)
    signature = inspect.Signature(every)

    def run(*positional: Any, **named: Any) -> None:
        given = signature.bind(*positional, **named).arguments
        made = technique(**{name: given[name] for name in technique.model_fields if name in given})
        result = made(**_values(asking, given))  # type: ignore[operator]
        folder = given.get("output_dir") or default_folder(made.title(), _subject(asking, given))
        deliver(result, folder, as_json=given.get("json", False))

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in every}
    about = inspect.cleandoc(technique.__doc__ or "")
    run.__doc__ = plain_text(sections(about)[""])
    return run


def _asked(argument: Argument) -> Asked:
    """How an argument is asked for: as its kind says, or by a flag of its plain type."""
    parameter = argument.parameter
    how = KINDS[argument.kind] if argument.kind else Asked(_repeated(parameter.annotation))
    if parameter.kind is FLAG:
        how = replace(how, place=FLAG, rank=0)
    return replace(how, name=how.name or parameter.name.removesuffix("s" * _repeats(how)))


def _repeats(how: Asked) -> bool:
    """Whether its flag may be repeated."""
    kind = get_args(how.type)[0] if get_origin(how.type) is Annotated else how.type
    return get_origin(kind) is tuple


def _repeated(hint: Any) -> Any:
    """`Sequence[float] | None` as the tuple that a repeated flag makes; other types as they are."""
    sequences = [part for part in (hint, *get_args(hint)) if get_origin(part) is Sequence]
    return GenericAlias(tuple, (*get_args(sequences[0]), ...)) if sequences else hint


def _parameter(argument: Argument, how: Asked) -> inspect.Parameter:
    default = argument.parameter.default
    if how.place is MANY:
        default = EMPTY
    elif default is None and _repeats(how):
        default = ()
    kind = how.type
    if get_origin(kind) is not Annotated:  # so it has no help of its own
        kind = kind | None if default is None else kind
        if how.place is FLAG:
            alias = SHORT.get(how.name)
            return flags.parameter(how.name, kind, default, argument.about, alias=alias)
        kind = Annotated[kind, Parameter(help=argument.about)]
    return inspect.Parameter(how.name, how.place, default=default, annotation=kind)


def _values(asking: Asking, given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments, by name in Python."""
    for argument, how in asking:
        required = argument.parameter.default is EMPTY
        if required and how.place is MANY and not given.get(how.name):
            what = how.name.removesuffix("s")
            raise ParameterError(f"no {what} given: name at least one", parameter=how.name)
    values = {}
    for argument, how in asking:
        value = given.get(how.name)
        if value is None or value == ():
            values[argument.parameter.name] = argument.parameter.default
        else:
            beside = {name: given[name] for name in how.beside if name in given}
            values[argument.parameter.name] = how.read(value, **beside)
    return values


def _subject(asking: Asking, given: Mapping[str, Any]) -> str:
    """What a result is named after: of images the first one, of stores all."""
    best = max((how for _, how in asking if given.get(how.name)), key=lambda how: how.rank)
    values = given[best.name] if isinstance(given[best.name], tuple) else (given[best.name],)
    names = [value.stem if isinstance(value, Path) else str(value) for value in values]
    return "-".join(names if best.name == "stores" else names[:1])


def _where_to_write(asking: Asking) -> str:
    subjects = []
    for argument, how in sorted(asking, key=lambda pair: -pair[1].rank):
        subjects.append(how.name.removesuffix("s").upper())
        if argument.parameter.default is EMPTY:
            break
    return f"Where to write; by default timmscope-out/TECHNIQUE-{' or -'.join(subjects)}."
