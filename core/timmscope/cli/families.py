"""One command per family: what it takes besides the technique's own parameters.

Imported by ``timmscope run`` once a technique is chosen, so torch is in memory by then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter

from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    RepresentationTechnique,
    Result,
    StyleTechnique,
    SynthesisTechnique,
    Technique,
    load_model,
)
from timmscope.cli import output
from timmscope.cli.deliver import default_folder, deliver
from timmscope.cli.names import names
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope import Store

Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Target = Annotated[str, Parameter(name=["--target", "-t"])]


def attribution(
    technique: AttributionTechnique,
    model: str,
    /,
    *images: Path,
    target: Target = "top",
    output_dir: Output = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Explain an objective by the pixels of images.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    images
        Image files.
    target
        What to explain: ``tiger cat``, ``class:282``, a unit ``blocks.4[17]``, or ``top``, the
        model's own prediction.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-IMAGE``.
    seed
        Of random numbers.
    batch_size
        Images a pass; by default what fits memory.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
    """
    paths = _given(images, "image")
    loaded = load_model(model, device=device)
    result = technique(loaded, paths, target, seed=seed, batch_size=batch_size)
    _deliver(result, technique, images[0].stem, output_dir, json)


def synthesis(
    technique: SynthesisTechnique,
    model: str,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])],
    init: Path | None = None,
    output_dir: Output = None,
    seed: int = 0,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Make an image that raises an objective.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    target
        What to maximise: ``tiger cat``, ``class:282``, a unit ``blocks.4[17]``, a layer.
    init
        Image to start from; by default noise.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-TARGET``.
    seed
        Of random numbers.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
    """
    loaded = load_model(model, device=device)
    result = technique(loaded, target, init=init, seed=seed)
    _deliver(result, technique, target, output_dir, json)


def attack(
    technique: AttackTechnique,
    model: str,
    /,
    *images: Path,
    label: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    target: Annotated[tuple[str, ...], Parameter(name=["--target", "-t"], show_default=False)] = (),
    output_dir: Output = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Change images a little so that the model is wrong.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    images
        Image files.
    label
        True class, by name or index; once, or once for each image. By default the prediction.
    target
        Class to aim at; once, or once for each image. By default any other than the label.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-IMAGE``.
    seed
        Of random numbers.
    batch_size
        Images a pass; by default what fits memory.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
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
    model: str,
    content: Path | None = None,
    /,
    *,
    style: Annotated[tuple[Path, ...], Parameter(name=["--style", "-s"])],
    weight: Annotated[tuple[float, ...], Parameter(show_default=False)] = (),
    output_dir: Output = None,
    seed: int = 0,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Render content in the manner of other pictures.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    content
        Image to render; without one, a texture of the style.
    style
        Image whose manner to take; may be repeated.
    weight
        Share of each style, in their order; equal by default.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-CONTENT``.
    seed
        Of random numbers.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
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
    store: Path,
    /,
    *queries: Path,
    layer: Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)] = (),
    where: str | None = None,
    metadata: Path | None = None,
    images: str | None = None,
    output_dir: Output = None,
    seed: int = 0,
    json: output.Flag = False,
) -> None:
    """Look at a layer over a whole data set.

    Parameters
    ----------
    store
        Store that ``timmscope mine`` made.
    queries
        Image files to ask about, for techniques that take some.
    layer
        Layer of the store; needed when it holds several.
    where
        Only images that meet a condition, as in ``"label == 'dog' and width > 300"``.
    metadata
        CSV file with further columns for conditions, joined by ``path``, ``name`` or ``id``.
    images
        Where the store's images are now, if they have moved since.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-STORE``.
    seed
        Of random numbers.
    json
        Print what was written to ``result.json``.
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
    layer: Annotated[tuple[str, ...], Parameter(name=["--layer", "-l"], show_default=False)] = (),
    where: str | None = None,
    metadata: Path | None = None,
    images: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    output_dir: Output = None,
    seed: int = 0,
    json: output.Flag = False,
) -> None:
    """Compare layers of one store, or of several.

    Parameters
    ----------
    stores
        Stores that ``timmscope mine`` made.
    layer
        Layer of the stores; may be repeated, or several with commas between, for techniques that
        look at several. By default all that each store holds, or the one that all hold.
    where
        Only images that meet a condition, as in ``"label == 'dog' and width > 300"``.
    metadata
        CSV file with further columns for conditions, joined by ``path``, ``name`` or ``id``.
    images
        Where a store's images are now, if they have moved since; once for each store.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-STORES``.
    seed
        Of random numbers.
    json
        Print what was written to ``result.json``.
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
    model: str,
    /,
    *images: Path,
    output_dir: Output = None,
    seed: int = 0,
    device: str | None = None,
    json: output.Flag = False,
) -> None:
    """Look at what a model has learnt.

    Parameters
    ----------
    model
        Model, as in ``timm:resnet50`` or ``pip:efficientnet-lite0``.
    images
        Image files, for techniques that take some.
    output_dir
        Where to write; by default ``timmscope-out/TECHNIQUE-MODEL``.
    seed
        Of random numbers.
    device
        Where to run, as in ``cpu`` or ``cuda:0``.
    json
        Print what was written to ``result.json``.
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
    from timmscope import Store

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
