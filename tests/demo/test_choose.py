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
    return np.flatnonzero(store.images.readable).tolist()


def test_a_guess_is_the_softmax_of_the_model(store, logits):
    found = choose.guesses(store, everything(store), 20)
    assert sorted(guess.image_id for guess in found) == sorted(logits)
    for guess in found:
        expected = logits[guess.image_id].softmax(0).topk(5)
        assert guess.classes == expected.indices.tolist()
        assert guess.probabilities == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_guesses_are_distinct_before_they_repeat_and_confident_first(store, logits):
    found = choose.guesses(store, everything(store), 12)
    assert len(found) == 12
    classes = [guess.classes[0] for guess in found]
    kinds = len({int(row.argmax()) for row in logits.values()})
    assert len(set(classes[:kinds])) == kinds
    confident = [guess.probabilities[0] for guess in found[:kinds]]
    assert confident == sorted(confident, reverse=True)
    assert found[0].probabilities[0] == pytest.approx(
        max(float(row.softmax(0).max()) for row in logits.values()), rel=1e-4
    )


def test_named_images_come_first_and_unreadable_ones_never(store):
    found = choose.guesses(store, everything(store), 20, first=("cat", "nobody", "ant"))
    names = [store.images.paths[guess.image_id] for guess in found]
    assert names[0] == "cat/cat.png"
    assert len(names) == 12
    assert "ant/broken.png" not in names


def test_only_candidates_are_chosen(store, logits):
    candidates = everything(store)[1::3]
    found = choose.guesses(store, candidates, 3)
    assert {guess.image_id for guess in found} <= set(candidates)
    best = max(candidates, key=lambda image_id: float(logits[image_id].softmax(0).max()))
    assert found[0].image_id == best


@pytest.mark.parametrize("where", [None, "'-1' not in name"])
def test_units_stand_out_by_their_weakest_patch(store, where):
    layer, patches = "layer2", 5
    found = choose.units(store, layer, 128, patches, where)
    maximum = np.asarray(store.layer(layer).maximum[:]).astype(float)
    paths, labels = store.images.paths, store.images.labels
    readable = np.flatnonzero(store.images.readable)
    allowed = [i for i in readable.tolist() if where is None or "-1" not in paths[i]]
    heights, first = {}, {}
    for unit in range(maximum.shape[1]):
        order = sorted(allowed, key=lambda i: (-maximum[i, unit], i))
        column = maximum[readable, unit]
        if column.std() > 0:
            heights[unit] = (maximum[order[patches - 1], unit] - column.mean()) / column.std()
            first[unit] = labels[order[0]]
    ranked = sorted(heights, key=lambda unit: (-heights[unit], unit))
    fresh = [u for at, u in enumerate(ranked) if first[u] not in {first[v] for v in ranked[:at]}]
    assert len(fresh) > 1
    assert found == [*fresh, *(unit for unit in ranked if unit not in fresh)]
    assert choose.units(store, layer, 2, patches, where) == found[:2]


def test_one_image_has_no_unit_that_stands_out(model, tmp_path):
    Image.new("RGB", (32, 32), (200, 90, 30)).save(tmp_path / "one.png")
    store = mine(model, tmp_path, tmp_path / "x.scope", layers=["layer2"], workers=0)
    assert choose.units(store, "layer2", 4, 6) == []


def test_share_of_same_photograph_equals_a_slow_count(store, model):
    from torch.nn import functional

    from timmscope.images import open_images

    shares = choose.same_photograph(store, "layer4")
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


def test_least_similar_has_the_smallest_cosine_to_the_first(store):
    rows = {i: torch.tensor(store.layer("layer4").pooled[i]) for i in everything(store)}
    for image_id in rows:
        others = [i for i in rows if i != image_id]
        found = choose.least_similar(store, "layer4", [image_id, *others])
        cosines = {
            i: float(torch.cosine_similarity(rows[image_id], rows[i], dim=0)) for i in others
        }
        assert cosines[found] == pytest.approx(min(cosines.values()), abs=1e-6)
