"""Third-party contributions: which one a name selects, and how wrong ones are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from timmscope import HookedModel, load_model, open_images
from timmscope.index.backend import BuildHints, find_backend, new_backend, validated_hits
from timmscope.mining.collector_errors import instantiate as made
from timmscope_registry import PluginError, UnsupportedModel, get_registry, set_registry
from timmscope_registry.contributions import missing_plugin

SOURCE = """
    from timmscope_registry import (
        CollectorSpec,
        ImageSourceSpec,
        IndexBackendSpec,
        ModelSourceSpec,
        hookimpl,
    )

    print("imported")

    def make(rest):
        print("made")
        from timmscope.testing import tiny_model
        return tiny_model(rest) if rest in ("cnn", "token") else rest

    def raising(rest):
        raise TypeError("of its own")

    def tuples(rest):
        from timmscope import HookedModel
        from torch import nn
        class Two(nn.Module):
            def forward(self, x):
                return x, x
        grey = (0.5, 0.5, 0.5)
        return HookedModel(Two(), mean=grey, std=grey, input_size=(3, 8, 8), id="tuples:x")

    class Strange:
        def __init__(self): ...
        ids = add = finish = remove = compact = rows = tune = save = load = facts = None
        __len__ = None
        def search(self, *words):
            return [0.5], [1]

    from timmscope import Collector

    class Odd(Collector):
        name, needs = "odd", ("max",)
        update = merge = state = load = print

    class Wanting(Odd):
        def __init__(self, k): ...

    class Lost(Odd):
        settings = ("k",)

    class Secret(Odd):
        settings, k = ("k",), object()

    class Nameless(Odd):
        name = None

    class Needy(Odd):
        needs = "max"

    @hookimpl
    def timmscope_collectors():
        for kind in (Odd, Wanting, Lost, Secret, Nameless, Needy):
            name = kind.__name__
            yield CollectorSpec(name=name.lower(), summary=".", impl=f"MODULE:{name}")

    def listed(rest):
        from timmscope import ImageSource
        class Listed(ImageSource):
            paths = list(rest)
            def __len__(self):
                return {"minus": -1, "half": 2.5, "many": 1 << 80}.get(rest, len(rest))
            def load(self, index):
                raise NotImplementedError
            def fingerprint(self):
                return ""
        return Listed()

    def nothing():
        pass

    @hookimpl
    def timmscope_model_sources():
        for name in ("make", "raising", "nothing", "tuples"):
            yield ModelSourceSpec(scheme=name, summary=".", impl=f"MODULE:{name}")

    @hookimpl
    def timmscope_index_backends():
        yield IndexBackendSpec(name="make", summary=".", impl="MODULE:make")
        yield IndexBackendSpec(name="strange", summary=".", impl="MODULE:Strange")

    @hookimpl
    def timmscope_image_sources():
        yield ImageSourceSpec(scheme="make", summary=".", impl="MODULE:make", suffixes=(".zz",))
        yield ImageSourceSpec(scheme="listed", summary=".", impl="MODULE:listed")
"""


@pytest.fixture
def _one(distribution: Callable[..., str]) -> Iterator[None]:
    set_registry(None)
    distribution("one", SOURCE, version="1.5")
    yield
    set_registry(None)


@pytest.mark.usefixtures("_one")
def test_a_scheme_that_two_plugins_offer_needs_its_full_name(distribution) -> None:
    assert load_model("make:token").id == "tiny:token"
    distribution("two", SOURCE)
    set_registry(None)
    with pytest.raises(PluginError, match=r"model source 'make': use one:make:cnn or two:make:cnn"):
        load_model("make:cnn")
    with pytest.raises(PluginError, match=r"image source 'make': use one:make:x or two:make:x"):
        open_images("make:x")
    assert isinstance(load_model("one:make:cnn"), HookedModel)


@pytest.mark.usefixtures("_one")
def test_a_scheme_of_timmscope_stays_its_own_beside_a_plugin(distribution, tmp_path) -> None:
    source = SOURCE.replace('"make"', '"random"').replace('"listed"', '"folder"')
    distribution("two", source.replace("MODULE:make", "MODULE:random") + "    random = make\n")
    set_registry(None)
    assert load_model("random:resnet10t?img_size=32").input_size == (3, 32, 32)
    assert load_model("two:random:cnn").id == "tiny:cnn"
    assert get_registry().model_source("random").plugin.distribution == "timmscope"
    (tmp_path / "a.png").write_bytes(b"")
    assert len(open_images(f"folder:{tmp_path}")) == 1
    hints = [problem.hint for problem in get_registry().problems()]
    assert "random: is timmscope's own; for the other use two:random:" in hints


@pytest.mark.usefixtures("_one")
@pytest.mark.parametrize(
    ("load", "location", "words"),
    [
        (load_model, "make:x", "'make' of one:main 1.5 returned a str; expected a HookedModel"),
        (open_images, "make:x", "'make' of one:main 1.5 returned a str; expected an ImageSource"),
        (open_images, "film.zz", "'make' of one:main 1.5 returned a str; expected an ImageSource"),
        (open_images, "listed:abba", "1.5 gives images 1 and 2 the same name, 'b'; expected uniq"),
        (open_images, "listed:minus", "'listed' of one:main 1.5 has no valid number of images: __"),
        (open_images, "listed:half", "of one:main 1.5 has no valid number of images: 'float' obj"),
        (open_images, "listed:many", "of one:main 1.5 has no valid number of images: cannot fit"),
        (load_model, "nothing:x", "of one:main 1.5 cannot be called with text: nothing.. takes 0"),
    ],
)
def test_a_source_with_a_wrong_result_is_named_with_its_version(load, location, words):
    with pytest.raises(PluginError, match=words):
        load(location)


@pytest.mark.usefixtures("_one")
def test_the_error_for_an_incomplete_backend_names_what_it_lacks():
    with pytest.raises(PluginError, match=r"'make' of one:main 1.5 has no ids, add, .*, __len__"):
        find_backend("make")


@pytest.mark.usefixtures("_one")
def test_a_backend_that_cannot_be_created_or_returns_nonsense_is_named_with_its_version():
    words = "index backend 'strange' of one:main 1.5"
    with pytest.raises(PluginError, match=f"{words} cannot be made: .* takes 1 positional"):
        new_backend("strange", 4, "l2", BuildHints())
    values = np.array([[3, 2, 2], [1, 0, -1]], np.float32)
    ids = np.array([[4, 0, 1], [5, 2, 3]])
    assert validated_hits("strange", (values, ids), (2, 3), "ip", 6) == (values, ids)
    assert validated_hits("strange", (-values, ids), (2, 3), "l2")[1] is ids
    for found, did in (
        (None, r"nothing; expected a tuple of .* arrays of shape \(2, 3\)"),
        ([values, ids], "a list; expected a tuple"),
        ((values, ids, ids), "a tuple; expected a tuple of values and ids"),
        ((values[:1], ids), r"\(1, 3\) and \(2, 3\); expected .* arrays of shape \(2, 3\)"),
        ((values, values), "values of float32 and ids of float32"),
        ((values * np.nan, ids), "values that are NaN"),
        ((-values, ids), "rows out of order; expected the best first, by descending inner product"),
        ((values, ids - 1), "row -1, which there is not"),
        ((values, ids + 1), "row 6, which there is not"),
        ((values, ids // 4), "row 0 twice"),
    ):
        with pytest.raises(PluginError, match=f"{words} found {did}"):
            validated_hits("strange", found, (2, 3), "ip", 6)


@pytest.mark.usefixtures("_one")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wanting", r"cannot be made: TypeError: .* missing 1 required positional argument: 'k'"),
        ("lost", "cannot be made: AttributeError: 'Lost' object has no attribute 'k'"),
        ("secret", "cannot be made: PydanticSerializationError: .* <class 'object'>"),
        ("nameless", "has the name None; expected text"),
        ("needy", "needs 'max'; expected a tuple of text"),
    ],
)
def test_a_collector_that_cannot_be_created_is_named_with_its_version(name, words):
    assert made(get_registry().collector("odd")).needs == ("max",)
    with pytest.raises(PluginError, match=f"collector '{name}' of one:main 1.5 {words}"):
        made(get_registry().collector(name))


@pytest.mark.usefixtures("_one")
def test_a_model_that_returns_several_things_is_refused_in_one_line():
    model = load_model("tuples:x")
    with pytest.raises(UnsupportedModel, match=r"tuples:x returns a tuple of .*; expected logits"):
        model(torch.zeros(1, 3, 8, 8))


@pytest.mark.usefixtures("_one")
def test_output_of_a_source_goes_to_stderr(capsys):
    load_model("make:cnn")
    assert tuple(capsys.readouterr()) == ("", "imported\nmade\n")


@pytest.mark.usefixtures("_one")
def test_an_error_inside_a_source_is_raised_unchanged():
    with pytest.raises(TypeError, match="of its own"):
        load_model("raising:x")


def test_what_is_missing_is_installed_or_loaded_from_its_file() -> None:
    assert "load it with --plugin my.py" in missing_plugin("technique", "my.py:mine")
    assert "install strange" in missing_plugin("technique", "strange:mine")
    assert "is not a registered technique" in missing_plugin("technique", "-my.py:mine")


def test_an_unknown_defence_suggests_only_defences() -> None:
    with pytest.raises(PluginError, match=r"choose one of bit-depth, [-a-z, ]+$") as error:
        load_model("random:test_resnet?seed=0&img_size=32", defences=["qqq"])
    offered = str(error.value).rpartition("choose one of ")[2].split(", ")
    entries = {entry.spec.name: entry.spec for entry in get_registry().techniques()}
    assert {entries[name].base for name in offered} == {"defence"}
