"""The rules by which the report chooses, against slow versions of themselves."""

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import load_model
from timmscope.demo import choose
from timmscope.mining import mine


@pytest.fixture(scope="module")
def model():
    return load_model("random:resnet18?seed=0&img_size=32&num_classes=7")


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """Twelve images in three folders, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("choose")
    generator = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        (folder / label).mkdir()
        base = generator.uniform(0, 255, (4, 4, 3))
        for index in range(4):
            noisy = np.clip(base + generator.normal(0, 40, base.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(noisy).resize((32, 32))
            picture.save(folder / label / f"{label if index == 0 else f'{label}-{index}'}.png")
    (folder / "ant" / "broken.png").write_bytes(b"no image")
    layers = ["layer2", "layer4", choose.LOGITS]
    return mine(model, folder, folder / "x.scope", layers=layers, workers=0)


@pytest.fixture(scope="module")
def logits(model, store):
    from timmscope.images import open_images

    source = open_images(store.manifest.images.location)
    ids = np.flatnonzero(store.images.readable)
    batch = torch.stack([model.preprocess(source.load(int(i))) for i in ids])
    with torch.no_grad():
        return dict(zip(ids.tolist(), model(batch), strict=True))


def everything(store):
    return np.asarray(store.images.readable)


def test_a_guess_is_the_softmax_of_the_model(store, logits):
    for image_id, row in logits.items():
        found = choose.guess(store, image_id, count=3)
        expected = row.softmax(0).topk(3)
        assert [index for index, _ in found.top] == expected.indices.tolist()
        assert [share for _, share in found.top] == pytest.approx(
            expected.values.tolist(), rel=1e-4
        )


def test_guesses_are_distinct_before_they_repeat_and_confident_first(store, logits):
    found = choose.guesses(store, everything(store), 12)
    assert len(found) == 12
    classes = [guess.top[0][0] for guess in found]
    kinds = len({int(row.argmax()) for row in logits.values()})
    assert len(set(classes[:kinds])) == kinds
    confident = [guess.confidence for guess in found[:kinds]]
    assert confident == sorted(confident, reverse=True)
    assert found[0].confidence == pytest.approx(
        max(float(row.softmax(0).max()) for row in logits.values()), rel=1e-4
    )


def test_named_images_come_first_and_unreadable_ones_never(store):
    found = choose.guesses(store, everything(store), 20, first=("cat", "nobody", "ant"))
    assert [guess.path for guess in found[:1]] == ["cat/cat.png"]
    assert len(found) == 12
    assert all("broken" not in guess.path for guess in found)


def test_best_logit_is_the_largest_of_all_images(store, logits):
    for label in range(7):
        score, image_id = choose.best_logit(store, label)
        values = {key: float(row[label]) for key, row in logits.items()}
        assert score == pytest.approx(max(values.values()), rel=1e-4)
        assert image_id == max(values, key=values.__getitem__)


@pytest.mark.parametrize("by_photograph", [True, False])
def test_units_stand_out_by_their_weakest_patch(store, by_photograph):
    layer, patches = "layer2", 5
    found = choose.units(store, layer, 3, patches, by_photograph=by_photograph)
    maximum = np.asarray(store.layer(layer).maximum[:])
    readable = np.flatnonzero(store.images.readable)
    heights = {}
    for unit in range(maximum.shape[1]):
        order = sorted(readable.tolist(), key=lambda i: (-maximum[i, unit], i))
        kept, taken = [], {}
        for image_id in order:
            name = store.images.labels[image_id] if by_photograph else image_id
            taken[name] = taken.get(name, 0) + 1
            if taken[name] <= choose.PER_PHOTOGRAPH and len(kept) < patches:
                kept.append(image_id)
        column = maximum[readable, unit].astype(float)
        if column.std() > 0:
            heights[unit] = (
                (maximum[kept[-1], unit] - column.mean()) / column.std(),
                kept,
            )
    best = max(heights, key=lambda unit: (heights[unit][0], -unit))
    assert found[0][0] == best
    for unit, entries in found:
        assert [entry.image_id for entry in entries] == heights[unit][1]
        assert [entry.value for entry in entries] == pytest.approx(
            [float(maximum[i, unit]) for i in heights[unit][1]]
        )


def test_share_of_same_photograph_equals_a_slow_count(store, model):
    from torch.nn import functional

    from timmscope.images import open_images

    shares = choose.same_photograph(store, "layer4", model)
    assert shares is not None
    source = open_images(store.manifest.images.location)
    ids = np.flatnonzero(store.images.readable).tolist()
    small = {
        i: functional.interpolate(model.preprocess(source.load(i))[None], (32, 32), mode="area")
        for i in ids
    }
    rows = {i: torch.tensor(store.layer("layer4").pooled[i]) for i in ids}
    labels = store.images.labels
    pixels = features = 0
    for i in ids:
        others = [j for j in ids if j != i]
        near = min(others, key=lambda j: float((small[i] - small[j]).norm()))
        alike = max(others, key=lambda j: float(torch.cosine_similarity(rows[i], rows[j], dim=0)))
        pixels += labels[near] == labels[i]
        features += labels[alike] == labels[i]
    assert shares == pytest.approx((pixels / len(ids), features / len(ids)))


def test_least_similar_has_the_smallest_cosine(store):
    rows = {
        i: torch.tensor(store.layer("layer4").pooled[i])
        for i in np.flatnonzero(store.images.readable).tolist()
    }
    for image_id in rows:
        found = choose.least_similar(store, "layer4", image_id, everything(store))
        cosines = {
            j: float(torch.cosine_similarity(rows[image_id], rows[j], dim=0))
            for j in rows
            if j != image_id
        }
        assert cosines[found] == pytest.approx(min(cosines.values()), abs=1e-6)
