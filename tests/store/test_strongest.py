"""The images at which an objective is highest are compared with sorting every computed value."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.store.conftest import BAD, COUNT, LABELS, Known

from timmscope import HookedModel, Store, StoreMismatch, VectorIndex, load_model, mine, strongest
from timmscope.index.linear_form import linear_form
from timmscope_registry import LayerNotFound, ObjectiveError, ParameterError

SPATIAL, HEAD = "blocks.1/x", "head"


def brute(scores: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
    ids = [i for i in range(len(scores)) if allowed[i] and np.isfinite(scores[i])]
    return sorted(ids, key=lambda i: (-np.float32(scores[i]), i))[:k]


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (f"{HEAD}[4]", {HEAD: [0, 0, 0, 0, 1, 0, 0]}),
        (f"-2*{SPATIAL}[2]", {SPATIAL: [0, 0, -2, 0, 0]}),  # many ties at zero
        (f"{SPATIAL}[1]", {SPATIAL: [0, 1, 0, 0, 0]}),  # NaN and infinity
        (f"0.5*{HEAD}[0] - {HEAD}[1] + {HEAD}[0]", {HEAD: [1.5, -1, 0, 0, 0, 0, 0]}),
        (
            f"{HEAD}[6] + {SPATIAL}@[1, 0, 0, 0, -0.5]",
            {HEAD: [0, 0, 0, 0, 0, 0, 1], SPATIAL: [1, 0, 0, 0, -0.5]},
        ),
    ],
)
@pytest.mark.parametrize("where", [None, "label == 'class 0' or id > 40"])
def test_the_strongest_are_those_of_brute_force(
    known: Known, text: str, weights: dict[str, list[float]], where: str | None
) -> None:
    total = np.zeros(COUNT)
    for layer, vector in weights.items():
        for unit, weight in enumerate(vector):
            if weight:  # a unit of weight zero may be NaN
                total += weight * known.rows[layer, "pooled"][:, unit].astype(np.float64)
    allowed = np.array([i not in BAD for i in range(COUNT)])
    if where:
        allowed &= [LABELS[i] == "class 0" or i > 40 for i in range(COUNT)]
    for k in (1, 7, 100):
        hits = strongest(known.open(), text, k, where=where)
        expected = brute(total, allowed, k)
        assert hits.ids[0].tolist() == expected
        assert hits.scores[0] == pytest.approx(total[expected], rel=1e-6)


def test_masks_and_ids_choose_as_conditions_do(known: Known) -> None:
    store = known.open()
    wanted = strongest(store, f"{HEAD}[0]", 5, where="20 <= id < 40").ids
    mask = np.arange(COUNT) // 20 == 1
    assert np.array_equal(strongest(store, f"{HEAD}[0]", 5, where=mask).ids, wanted)
    assert np.array_equal(strongest(store, f"{HEAD}[0]", 5, where=[*range(20, 40)]).ids, wanted)
    assert strongest(store, f"{HEAD}[0]", 5, where=[]).ids.shape == (1, 0)
    with pytest.raises(ParameterError, match=r"ids from 0 to 49"):
        strongest(store, f"{HEAD}[0]", 5, where=[50])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("hed[0]", LayerNotFound, "no layer 'hed'; did you mean 'head'"),
        ("head[7]", ObjectiveError, "units 0 to 6, there is no unit 7"),
        ("head@[1, 2]", ObjectiveError, "2 numbers, but layer 'head' has 7 channels"),
        (f"{SPATIAL}[0,1,1]", ObjectiveError, "not a linear function"),
        ("top", ObjectiveError, "not a linear function"),
    ],
)
def test_an_objective_that_rows_cannot_answer_is_refused_in_one_line(
    known: Known, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        strongest(known.open(), text)
    assert "\n" not in str(caught.value)


def test_fewer_than_one_image_is_an_error(known: Known) -> None:
    with pytest.raises(ParameterError, match="k is 0"):
        strongest(known.open(), "head[0]", 0)


class TestTop:
    @pytest.mark.parametrize(
        "where", ["id % 2", "id > 5 and id < 30", "label == 'class 1'", "id < 0"]
    )
    @pytest.mark.parametrize("top_k", [3, 60])
    def test_a_units_strongest_under_a_condition_are_those_of_brute_force(
        self, write: Callable[..., Known], top_k: int, where: str
    ) -> None:
        known = write(f"{top_k}", top_k=top_k)
        chosen: str | np.ndarray = np.arange(COUNT) % 2 == 1 if "%" in where else where
        store = known.open()
        allowed = store.images.where(chosen) & store.images.readable
        for unit in range(5):
            values = known.rows[SPATIAL, "max"][:, unit]
            for k in (1, 4, 20):
                entries = store.layer(SPATIAL).top(unit, k, where=chosen)
                expected = brute(values, allowed, k)
                assert [entry.image_id for entry in entries] == expected
                assert [entry.value for entry in entries] == values[expected].tolist()
                cells = known.rows[SPATIAL, "argmax"][expected, unit]
                assert [4 * e.position[0] + e.position[1] for e in entries] == cells.tolist()


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, HookedModel]:
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + number % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
    model = load_model("random:resnet18?seed=0&img_size=64")
    layers = ["layer3", "layer4", "global_pool"]
    return mine(model, folder / "images", folder / "s.scope", layers=layers, workers=0), model


class TestClasses:
    def test_a_logit_is_read_through_the_affine_path(
        self, mined: tuple[Store, HookedModel]
    ) -> None:
        store, model = mined
        source = store.source()
        with torch.inference_mode():
            logits = model(model.images([source.load(i) for i in range(12)])).double().numpy()
        fc = model.module.fc
        for layer in ("layer4", "global_pool"):  # the last block is pooled by its mean
            form = linear_form("class:17", store, layer=layer, model=model)
            assert list(form.vectors) == [layer]
            assert form.vectors[layer] == pytest.approx(fc.weight[17].double().numpy(), abs=1e-6)
            assert form.offset == pytest.approx(float(fc.bias[17]), abs=1e-5)
        hits = strongest(store, "class:17 - 2*class:3", 12, model=model)
        scores = logits[:, 17] - 2 * logits[:, 3]
        assert hits.ids[0].tolist() == np.argsort(-scores, kind="stable").tolist()
        assert hits.scores[0] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)

    def test_a_layer_before_a_nonlinearity_is_refused(
        self, mined: tuple[Store, HookedModel]
    ) -> None:
        store, model = mined
        with pytest.raises(
            ObjectiveError, match=r"not an affine function of the pooled rows of layer3"
        ):
            strongest(store, "class:17", layer="layer3", model=model)

    def test_another_model_is_refused(self, mined: tuple[Store, HookedModel]) -> None:
        other = load_model("random:resnet18?seed=1&img_size=64")
        for objective in ("class:17", "layer3[4]"):  # a unit needs no model, but one was given
            with pytest.raises(StoreMismatch, match="seed=1&img_size=64 has other weights"):
                strongest(mined[0], objective, model=other)

    def test_tokens_that_the_classifier_does_not_average_are_refused(self, tmp_path: Path) -> None:
        model = load_model("random:vit_tiny_patch16_224?seed=0&img_size=32&depth=2")
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / "images.npy", images)
        layers = ["norm", "fc_norm"]
        store = mine(model, tmp_path / "images.npy", tmp_path / "v", layers=layers, workers=0)
        with pytest.raises(ObjectiveError, match="not an affine function"):
            strongest(store, "class:1", layer="norm", model=model)
        form = linear_form("class:1", store, model=model)
        assert list(form.vectors) == ["fc_norm"]

    def test_an_index_is_searched_by_an_objectives_direction(
        self, mined: tuple[Store, HookedModel]
    ) -> None:
        store, model = mined
        index = VectorIndex.build(store.layer("global_pool"), metric="ip")
        hits = index.search_objective("class:17", 5, model=model)
        exact = strongest(store, "class:17", 5, model=model)
        assert np.array_equal(hits.ids, exact.ids)
        offset = float(model.module.fc.bias[17])
        assert hits.scores + offset == pytest.approx(exact.scores, abs=1e-5)
        with pytest.raises(Exception, match="reads layer4, the index holds rows of global_pool"):
            index.search_objective("layer4[3]")
