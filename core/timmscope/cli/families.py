"""One command per family: what it takes besides the technique's own parameters.

Imported by ``timmscope run`` once a technique is chosen, so torch is in memory by then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter

from timmscope.cli import parameters
from timmscope.cli.names import names
from timmscope.cli.save_result import default_folder, deliver
from timmscope.models import load_model
from timmscope.results import Result
from timmscope.techniques import (
    AttackTechnique,
    AttributionTechnique,
    RepresentationTechnique,
    StyleTechnique,
    SynthesisTechnique,
    Technique,
)
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.store import Store


def attribution(
    technique: AttributionTechnique,
    model: parameters.Model,
    /,
    *images: parameters.ImageFile,
    target: parameters.Target = "top",
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    batch_size: parameters.BatchSize = None,
    device: parameters.Device = None,
    json: parameters.Record = False,
) -> None:
    """Explain an objective by the pixels of images.

    Parameters
    ----------
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-IMAGE``.
    """
    paths = _given(images, "image")
    loaded = load_model(model, device=device)
    result = technique(loaded, paths, target, seed=seed, batch_size=batch_size)
    _deliver(result, technique, images[0].stem, output_dir, json)


def synthesis(
    technique: SynthesisTechnique,
    model: parameters.Model,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])],
    init: Path | None = None,
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    device: parameters.Device = None,
    json: parameters.Record = False,
) -> None:
    """Make an image that raises an objective.

    Parameters
    ----------
    target
        What to maximise: ``tiger cat``, ``class:282``, a unit ``blocks.4[17]``, a layer.
    init
        Image to start from; by default noise.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-TARGET``.
    """
    loaded = load_model(model, device=device)
    result = technique(loaded, target, init=init, seed=seed)
    _deliver(result, technique, target, output_dir, json)


def attack(
    technique: AttackTechnique,
    model: parameters.Model,
    /,
    *images: parameters.ImageFile,
    label: parameters.Repeated = (),
    target: Annotated[tuple[str, ...], Parameter(name=["--target", "-t"], show_default=False)] = (),
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    batch_size: parameters.BatchSize = None,
    device: parameters.Device = None,
    json: parameters.Record = False,
) -> None:
    """Change images a little so that the model is wrong.

    Parameters
    ----------
    label
        True class, by name or index; once, or once for each image. By default the prediction.
    target
        Class to aim at; once, or once for each image. By default any other than the label.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-IMAGE``.
    """
    paths = _given(images, "image")
    loaded = load_model(model, device=device)
    result = technique(
        loaded,
        paths,
        _classes(label, len(paths), "label"),
        targets=_classes(target, len(paths), "target"),
        seed=seed,
        batch_size=batch_size,
    )
    _deliver(result, technique, images[0].stem, output_dir, json)


def style(
    technique: StyleTechnique,
    model: parameters.Model,
    content: Path | None = None,
    /,
    *,
    style: Annotated[tuple[Path, ...], Parameter(name=["--style", "-s"])],
    weight: Annotated[tuple[float, ...], Parameter(show_default=False)] = (),
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    device: parameters.Device = None,
    json: parameters.Record = False,
) -> None:
    """Render content in the manner of other pictures.

    Parameters
    ----------
    content
        Image to render; without one, a texture of the style.
    style
        Image whose manner to take; may be repeated.
    weight
        Share of each style, in their order; equal by default.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-CONTENT``.
    """
    if weight and len(weight) != len(style):
        raise ParameterError(
            f"{len(weight)} weights for {len(style)} styles: give --weight once for each --style",
            parameter="weight",
        )
    loaded = load_model(model, device=device)
    result = technique(loaded, content, list(style), weights=list(weight) or None, seed=seed)
    _deliver(result, technique, (content or style[0]).stem, output_dir, json)


def representation_of_store(
    technique: RepresentationTechnique,
    store: parameters.StorePath,
    /,
    *queries: Path,
    layer: parameters.Layers = (),
    where: parameters.Where = None,
    metadata: parameters.Metadata = None,
    images: parameters.Moved = None,
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    json: parameters.Record = False,
) -> None:
    """Look at a layer over a whole data set.

    Parameters
    ----------
    queries
        Image files to ask about, for techniques that take some.
    layer
        Layer of the store; needed when it holds several.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-STORE``.
    """
    result = technique(
        _opened(store, metadata),
        list(queries) or None,
        layer=names(layer) or None,
        where=where,
        location=images,
        seed=seed,
    )
    _deliver(result, technique, store.stem, output_dir, json)


def representation_of_stores(
    technique: RepresentationTechnique,
    /,
    *stores: Path,
    layer: parameters.Layers = (),
    where: parameters.Where = None,
    metadata: parameters.Metadata = None,
    images: parameters.Repeated = (),
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    json: parameters.Record = False,
) -> None:
    """Compare layers of one store, or of several.

    Parameters
    ----------
    stores
        Stores that ``timmscope mine`` made.
    layer
        Layer of the stores; may be repeated, or several with commas between, for techniques that
        look at several. By default all that each store holds, or the one that all hold.
    images
        Where a store's images are now, if they have moved since; once for each store.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-STORES``.
    """
    if not stores:
        raise ParameterError("no store given: name at least one", parameter="stores")
    if len(images) not in (0, len(stores)):
        raise ParameterError(
            f"{len(images)} times --images for {len(stores)} stores: give it once for each",
            parameter="images",
        )
    result = technique(
        [_opened(path, metadata) for path in stores],
        layer=names(layer) or None,
        where=where,
        location=(images[0] if len(stores) == 1 else images) if images else None,
        seed=seed,
    )
    _deliver(result, technique, "-".join(path.stem for path in stores), output_dir, json)


def representation_of_model(
    technique: RepresentationTechnique,
    model: parameters.Model,
    /,
    *images: Path,
    output_dir: parameters.Output = None,
    seed: parameters.Seed = 0,
    device: parameters.Device = None,
    json: parameters.Record = False,
) -> None:
    """Look at what a model has learnt.

    Parameters
    ----------
    images
        Image files, for techniques that take some.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-MODEL``.
    """
    result = technique(load_model(model, device=device), list(images) or None, seed=seed)
    _deliver(result, technique, images[0].stem if images else model, output_dir, json)


def for_technique(technique: type[Technique]) -> Callable[..., None]:
    """Return the command function of a technique's family."""
    if technique.family == "representation":
        readers: dict[str, Callable[..., None]] = {
            "store": representation_of_store,
            "stores": representation_of_stores,
            "model": representation_of_model,
        }
        return readers[cast("type[RepresentationTechnique]", technique).reads]
    commands: dict[str, Callable[..., None]] = {
        "attribution": attribution,
        "synthesis": synthesis,
        "attack": attack,
        "style": style,
    }
    return commands[technique.family]


def _opened(path: Path, metadata: Path | None) -> Store:
    """A store, with the columns of a CSV file beside its images where there is one."""
    from timmscope.store import Store

    store = Store.open(path)
    return store if metadata is None else store.with_metadata(metadata)


def _given(images: tuple[Path, ...], what: str) -> list[Path]:
    if not images:
        raise ParameterError(f"no {what} given: name at least one file", parameter="images")
    return list(images)


def _classes(given: tuple[str, ...], images: int, flag: str) -> int | str | list[int | str] | None:
    """One class for all images, or one for each; None when not given."""
    if len(given) not in (0, 1, images):
        raise ParameterError(
            f"{len(given)} times --{flag} for {images} images: give it once, or once for each",
            parameter=flag,
        )
    classes = [int(text) if text.isdecimal() else text for text in given]
    return None if not classes else classes[0] if len(classes) == 1 else classes


def _deliver(
    result: Result, technique: Technique, subject: str, directory: Path | None, as_json: bool
) -> None:
    """Save a result where it was asked for, or by technique and subject."""
    deliver(result, directory or default_folder(technique.title(), subject), as_json=as_json)
