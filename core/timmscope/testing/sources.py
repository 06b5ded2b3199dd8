"""Checks of model and image sources."""

from __future__ import annotations

import pickle

from PIL import Image

from timmscope.images import ImageSource, open_images
from timmscope.models import HookedModel
from timmscope.testing.conformance import Case, NotApplicable, check
from timmscope_registry import ImageError, TimmscopeError


@check("model source")
def an_unknown_name_gives_a_one_line_error(case: Case) -> None:
    """An unknown name raises a `TimmscopeError` with a message of one line."""
    try:
        case.entry.load()("no-such-model-anywhere")
    except TimmscopeError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("it loads a model that does not exist")


@check("model source")
def its_example_works(case: Case) -> None:
    """The spec's example loads, returns finite values, and has the same weights each time."""
    import torch

    scheme, _, rest = case.entry.spec.example.partition(":")
    if not rest:
        raise NotApplicable("the spec has no example")
    assert scheme == case.entry.spec.scheme, f"the example begins with {scheme}:"
    try:
        model = case.entry.load()(rest)
    except TimmscopeError as error:
        raise NotApplicable(f"the example cannot be loaded here: {error}") from None
    assert isinstance(model, HookedModel), f"it returned {type(model).__name__}"
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.full((1, *model.input_size), 0.5))).all())
    again = case.entry.load()(rest)  # stores load their model by name
    assert again.weights_sha256 == model.weights_sha256, "loaded again, it has other weights"


@check("image source")
def images_are_rgb_and_named_once(case: Case) -> None:
    """Every image is 8-bit RGB with a unique name, and there are as many labels as images."""
    source = _source(case)
    assert len(source) >= 3
    names = list(source.paths)
    assert len(set(names)) == len(names) == len(source)
    for place in range(len(source)):
        image = source.load(place)
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB"
    labels = source.labels
    assert labels is None or len(labels) == len(source)


@check("image source")
def its_location_opens_it_again(case: Case) -> None:
    """`open_images(source.location)` gives the same images and the same fingerprint."""
    source = _source(case)
    again = open_images(source.location)
    assert list(again.paths) == list(source.paths)
    assert again.fingerprint() == source.fingerprint()
    assert again.load(0).tobytes() == source.load(0).tobytes()


@check("image source")
def worker_processes_can_read_it(case: Case) -> None:
    """Its pickle is small, and an unpickled copy reads the same images."""
    source = _source(case)
    source.load(0)
    text = pickle.dumps(source)
    assert len(text) < 100_000 + 1000 * len(source), f"it pickles to {len(text)} bytes"
    assert pickle.loads(text).load(1).tobytes() == source.load(1).tobytes()


@check("image source")
def a_missing_location_gives_a_one_line_error(case: Case) -> None:
    """A location that does not exist raises an `ImageError` with a message of one line."""
    try:
        source = case.entry.load()(str(case.folder / "nothing-here"))
        source.load(0)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("it reads images from a location that does not exist")


def _source(case: Case) -> ImageSource:
    if case.make is None:
        raise NotApplicable("pass make= to check its images")
    source = case.entry.load()(case.make(case.folder))
    assert isinstance(source, ImageSource), f"it returned {type(source).__name__}"
    return source
