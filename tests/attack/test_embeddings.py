"""Embeddings as goals: captions of two towers, faces, and the neighbours in an index."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import Ball, HookedModel, VectorIndex, match, mine, technique

PGD = technique("pgd")
CAPTIONS = [
    f"a photo of the digit {word}"
    for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
]


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


# Two towers: digits and their captions


class TextTower(nn.Module):
    """Mean of the embeddings of all pairs of letters, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.EmbeddingBag(27 * 27, 64, mode="mean")
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, texts: list[str]) -> Tensor:
        letters = [[0 if each == " " else ord(each) - 96 for each in text] for text in texts]
        ids = [torch.tensor([27 * a + b for a, b in pairwise(t)]) for t in letters]
        starts = torch.tensor([0, *(len(each) for each in ids[:-1])]).cumsum(0)
        return self.head(self.pairs(torch.cat(ids), starts))


def two_towers(seed: int, images: Tensor, labels: Tensor, epochs: int) -> tuple[nn.Module, Tensor]:
    """Train an image and a text tower with InfoNCE; return the first, and the captions' rows."""
    torch.manual_seed(seed)
    tower = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 32)),
    )
    text = TextTower()
    optimizer = torch.optim.Adam([*tower.parameters(), *text.parameters()], 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            pictures = functional.normalize(tower(images[rows]), dim=1)
            words = functional.normalize(text([CAPTIONS[each] for each in labels[rows]]), dim=1)
            same = (labels[rows][:, None] == labels[rows]).float()
            same = same / same.sum(1, keepdim=True)  # a batch has captions several times
            logits = 10 * pictures @ words.T
            loss = functional.cross_entropy(logits, same) + functional.cross_entropy(logits.T, same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return tower.eval(), functional.normalize(text(CAPTIONS), dim=1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    known = load_digits()
    return torch.tensor(known.images / 16, dtype=torch.float32)[:, None], torch.tensor(known.target)


def nearest(tower: nn.Module, rows: Tensor, images: Tensor) -> Tensor:
    """The row nearest to each image by cosine."""
    with torch.no_grad():
        return (functional.normalize(tower(images), dim=1) @ rows.T).argmax(1)


def test_an_image_is_found_by_another_caption(digits):
    images, labels = digits
    tower, captions = two_towers(0, images[:1000], labels[:1000], epochs=4)
    images, labels = images[1400:1460], labels[1400:1460]
    assert (nearest(tower, captions, images) == labels).float().mean() >= 0.95
    targets = (labels + 3) % 10
    others = captions @ captions.T - 2 * torch.eye(10)
    value = max(math.cos(math.acos(each) / 2) for each in others.amax(1).tolist())
    model = HookedModel(tower, mean=(0,), std=(1,), input_size=(1, 8, 8), crop_pct=1.0)
    aim = match("logits", vector=captions[targets], distance="cosine")
    result = PGD(epsilon=0.3, steps=20)(model, images, objective=aim, value=value)
    found = nearest(tower, captions, result.images)
    assert (found == targets).float().mean() >= 0.9
    assert bool((found == targets)[result.success].all())  # no other caption can be nearer
    noise = Ball(norm="linf", epsilon=0.3).noise(images, generators(60))
    noisy = nearest(tower, captions, (images + noise).clamp(0, 1))
    assert (noisy == targets).float().mean() <= 0.2
    head = nn.Linear(32, 10, bias=False)
    head.weight.data = captions
    classes = HookedModel(
        nn.Sequential(tower, head), mean=(0,), std=(1,), input_size=(1, 8, 8), crop_pct=1.0
    )
    assert torch.equal(classes(images).argmax(1), nearest(tower, captions, images))
    aimed = PGD(epsilon=0.3, steps=20)(classes, images, targets=targets)
    assert aimed.success_rate >= 0.8
    assert bool((nearest(tower, captions, aimed.images) == targets)[aimed.success].all())


@pytest.mark.slow
def test_other_towers_find_the_attacked_image_by_the_same_caption(digits):
    images, labels = digits
    pairs = [two_towers(seed, images[:1400], labels[:1400], epochs=8) for seed in (0, 1)]
    images, labels = images[1400:1500], labels[1400:1500]
    targets = (labels + 3) % 10
    (tower, captions), other = pairs
    model = HookedModel(tower, mean=(0,), std=(1,), input_size=(1, 8, 8), crop_pct=1.0)
    aim = match("logits", vector=captions[targets], distance="cosine")
    result = PGD(epsilon=0.3, steps=20)(model, images, objective=aim, value=1.0)
    assert (nearest(tower, captions, result.images) == targets).float().mean() >= 0.9
    assert (nearest(*other, result.images) == targets).float().mean() >= 0.7
    noise = Ball(norm="linf", epsilon=0.3).noise(images, generators(100))
    for each in pairs:
        noisy = nearest(*each, (images + noise).clamp(0, 1))
        assert (noisy == targets).float().mean() <= 0.2


# Faces


def seen_anew(faces: Tensor, generator: torch.Generator) -> Tensor:
    """Faces zoomed, shifted, at another contrast and with noise."""
    numbers = torch.rand(len(faces), 4, generator=generator)
    maps = torch.zeros(len(faces), 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = 0.9 + 0.2 * numbers[:, 0]
    maps[:, :, 2] = 0.16 * (2 * numbers[:, 1:3] - 1)
    grid = functional.affine_grid(maps, list(faces.shape), align_corners=False)
    seen = functional.grid_sample(faces, grid, padding_mode="border", align_corners=False)
    seen = (seen - 0.5) * (0.7 + 0.6 * numbers[:, 3]).view(-1, 1, 1, 1) + 0.5
    noise = torch.randn(seen.shape, generator=generator)
    return (seen + 0.05 * noise).clamp(0, 1)


@pytest.mark.slow
def test_a_face_is_found_as_another_persons():
    import skimage

    file = Path(skimage.__file__).parent / "data" / "lfw_subset.npy"
    faces = torch.from_numpy(np.load(file)[:100]).float()[:, None]  # 100 persons, 25×25, grey
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tower = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64)),
    )
    optimizer = torch.optim.Adam(tower.parameters(), 2e-3)
    for _ in range(150):
        one, two = (functional.normalize(tower(seen_anew(faces, generator))) for _ in range(2))
        loss = functional.cross_entropy(10 * one @ two.T, torch.arange(100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        known = functional.normalize(tower.eval()(faces))
    assert torch.equal(nearest(tower, known, seen_anew(faces, generator)), torch.arange(100))
    model = HookedModel(tower, mean=(0,), std=(1,), input_size=(1, 25, 25), crop_pct=1.0)

    targets = (torch.arange(20) + 7) % 100
    aim = match("logits", vector=known[targets], distance="cosine")
    single = PGD(epsilon=0.15, steps=20)(model, faces[:20], objective=aim, value=0.9)
    assert (nearest(tower, known, single.images) == targets).float().mean() >= 0.9

    # One change, or one pair of stickers, for all photographs of a person.
    many = seen_anew(faces[:1].expand(60, -1, -1, -1), torch.Generator().manual_seed(5))
    goal = {"objective": match("logits", vector=known[3], distance="cosine"), "value": 0.9}
    small = technique("universal-perturbation")(epsilon=0.15, epochs=10)
    found = small(model, many, held_out=0.3, **goal)
    changed = nearest(tower, known, found.apply(many))
    assert (changed == 3)[found.held_out].float().mean() >= 0.9
    patch = technique("adversarial-patch")(shape="stickers", area=0.2, epochs=30)
    worn = patch(model, many, held_out=0.3, **goal)
    seen = patch.changed(many, worn.perturbation, generators(60))
    noisy = patch.noisy(many, worn.perturbation, generators(60))
    assert (nearest(tower, known, seen) == 3)[worn.held_out].float().mean() >= 0.3
    assert not (nearest(tower, known, noisy) == 3).any()


# An index


@pytest.mark.slow
def test_the_nearest_image_in_an_index_becomes_the_target(lite0, photo_paths, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for name, path in photo_paths.items():
        Image.open(path).convert("RGB").save(folder / f"{name}.png")
    store = mine(lite0, folder, tmp_path / "photos.scope", layers=["global_pool"])
    index = VectorIndex.of(store.layer("global_pool"))
    paths = list(store.images.paths)
    target = paths.index("coffee.png")
    closest = float(index.search_row(target, k=1).scores[0][0])
    value = math.cos(math.acos(closest) / 2)
    result = PGD(epsilon=8 / 255, steps=20)(
        lite0, folder / "chelsea.png", objective=index.match(target), value=value
    )
    before, after = (
        [int(hits) for hits in index.search_image(lite0, images, k=1).ids[:, 0]]
        for images in (result.originals, result.images)
    )
    assert before == [paths.index("chelsea.png")]
    assert after == [target]
    assert bool(result.success.all())
    noise = Ball(norm="linf", epsilon=8 / 255).noise(result.originals, generators(1))
    noisy = (result.originals + noise).clamp(0, 1)
    assert int(index.search_image(lite0, noisy, k=1).ids[0, 0]) == before[0]
