"""HopSkipJump: the nearest point of a plane, a slow second implementation, and exact queries."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from tests.attack.conftest import Curved
from tests.attack.test_oracles import TwoClasses
from tests.digits.load import digits_read_right

from timmscope import HookedModel, ImageError, ParameterError, technique

HopSkipJump = technique("hopskipjump")
PIXELS = {"mean": (0,) * 3, "std": (1,) * 3, "input_size": (3, 4, 4)}


@pytest.fixture
def plane(images) -> HookedModel:
    model = HookedModel(TwoClasses().double(), **PIXELS)
    with torch.no_grad():
        model.module.bias.copy_(-(images.double().flatten(1) @ model.module.weight).mean())
    return model


@pytest.fixture(scope="module")
def digits():
    """Twenty held-out digits that the standard network classifies as labelled."""
    return digits_read_right("standard", 20)


@pytest.mark.parametrize(("norm", "steps"), [("l2", 25), ("linf", 40)])
def test_a_plane_is_reached_at_its_nearest_point(norm, steps, plane, images):
    images = images[:4].double()
    weight = plane.module.weight.detach()
    margin = (images.flatten(1) @ weight + plane.module.bias.detach()).abs()
    distance = margin / (weight.norm() if norm == "l2" else weight.abs().sum())
    result = HopSkipJump(norm=norm, steps=steps, queries=None)(plane, images)
    assert result.success.all()
    ratio = result.radius / distance
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.max()) <= 1.02


def slow_hop_skip_jump(decide, image, generator, *, norm, steps, samples, gamma=1.0):
    """HopSkipJump of one image as the paper writes it, with one question at a time."""
    shape, values = image.shape, image.size

    def uniform(number: int) -> np.ndarray:
        cells = (4, 1, 4, 2, 4, 4, 4, 4)[number % 8]  # of images of 4×4
        noise = torch.rand(shape[0], cells, cells, generator=generator).double().numpy()
        return noise.repeat(4 // cells, 1).repeat(4 // cells, 2)

    def size(change: np.ndarray) -> float:
        return float(np.sqrt((change**2).sum()) if norm == "l2" else np.abs(change).max())

    def blended(end: np.ndarray, tolerance: float) -> np.ndarray:
        low, high = 0.0, 1.0
        while high - low > tolerance:
            middle = (low + high) / 2
            if decide(image + middle * (end - image)):
                high = middle
            else:
                low = middle
        return image + high * (end - image)

    def to_boundary(end: np.ndarray) -> np.ndarray:
        if norm == "l2":
            return blended(end, gamma / values**1.5)
        low, high = 0.0, size(end - image)
        tolerance = gamma / values**2 * high
        while high - low > tolerance:
            middle = (low + high) / 2
            if decide(image + np.clip(end - image, -middle, middle)):
                high = middle
            else:
                low = middle
        return image + np.clip(end - image, -high, high)

    start, number, group = None, 0, 1
    while start is None:  # groups of 1, 2, 4 …, which are drawn whole
        tried = [uniform(number + each) for each in range(group)]
        start = next((each for each in tried if decide(each)), None)
        number, group = number + group, 2 * group
    start = blended(start, 1e-3)
    before, at = size(start - image), to_boundary(start)
    best = at
    for step in range(1, steps + 1):
        delta = 0.1 if step == 1 else gamma * before / values
        count = int(samples * math.sqrt(step))
        draw = torch.randn if norm == "l2" else torch.rand
        noise = draw(count, *shape, generator=generator)
        if norm == "linf":
            noise = 2 * noise - 1
        units, signs = [], []
        for each in noise:
            unit = (each / each.norm()).double().numpy()
            copy = np.clip(at + delta * unit, 0, 1)
            units.append((copy - at) / delta)
            signs.append(1.0 if decide(copy) else -1.0)
        mean = sum(signs) / count
        weights = signs if abs(mean) == 1 else [sign - mean for sign in signs]
        direction = sum(weight * unit for weight, unit in zip(weights, units, strict=True))
        step_along = np.sign(direction) if norm == "linf" else direction / size(direction)
        length = size(at - image) / math.sqrt(step)
        while not decide(np.clip(at + length * step_along, 0, 1)):
            length /= 2
        jumped = np.clip(at + length * step_along, 0, 1)
        before, at = size(jumped - image), to_boundary(jumped)
        best = at if size(at - image) < size(best - image) else best
    return best


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_walks_as_a_slow_implementation_does(norm, curved, images):
    curved.module.double()
    images = images[:2].double()
    labels = curved(images).argmax(1).tolist()
    settings = {"norm": norm, "steps": 3, "samples": 30}
    result = HopSkipJump(**settings)(curved, images, seed=7)
    for row, label in enumerate(labels):

        def decide(image: np.ndarray, label: int = label) -> bool:
            return int(curved(torch.from_numpy(image)[None]).argmax()) != label

        generator = torch.Generator().manual_seed(7 * 1_000_003 + row)
        expected = slow_hop_skip_jump(decide, images[row].numpy(), generator, **settings)
        assert np.allclose(result.images[row].numpy(), expected, atol=1e-6)


def test_labels_alone_give_the_same_images_and_every_query_counts(curved, images):
    seen: list[torch.Tensor] = []

    def labels_of(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        with torch.no_grad():
            return curved(batch).argmax(1)

    function = HookedModel.of_function(
        labels_of, outputs="labels", input_size=(3, 4, 4), num_classes=4, id="service:v1"
    )
    function.layers  # noqa: B018  (is described with two grey images)
    attack = HopSkipJump(steps=3, samples=20)
    seen.clear()
    result = attack(function, images)
    judging = 3 * len(images)
    assert int(result.queries.sum()) == sum(map(len, seen)) - judging
    assert torch.equal(result.queries, result.forwards)
    assert int(result.backwards.sum()) == 0
    assert torch.equal(result.images, attack(curved, images).images)


def test_no_image_is_asked_about_more_often_than_its_budget(curved, images):
    free = HopSkipJump(steps=6)(curved, images)
    spare = HopSkipJump(steps=6, queries=400)(curved, images)
    assert int(free.queries.min()) > 400
    assert 300 < int(spare.queries.min()) <= int(spare.queries.max()) <= 400
    assert spare.success.all()
    few = HopSkipJump(steps=6, queries=5)(curved, images)
    assert int(few.queries.max()) <= 5
    assert bool((few.radius >= spare.radius).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_image_does_not_depend_on_the_others(norm, curved, images):
    curved.module.double()
    images = images[:4].double()
    attack = HopSkipJump(norm=norm, steps=3, samples=20)
    whole = attack(curved, images, seed=2)
    alone = attack(curved, images, seed=2, batch_size=1)
    assert torch.allclose(whole.images, alone.images, atol=1e-9)
    assert torch.equal(whole.queries, alone.queries)


def test_a_target_is_reached_from_the_nearest_image_of_its_class(digits):
    model, images, labels = digits
    images, labels = images[:6], labels[:6]
    targets = (labels + 3) % 10
    starts = digits[1]
    attack = HopSkipJump(steps=4, starts=starts)
    result = attack(model, images, labels, targets=targets.tolist())
    reachable = torch.tensor([bool((digits[2] == target).any()) for target in targets])
    assert int(reachable.sum()) >= 3
    assert torch.equal(result.success, reachable)
    assert bool((result.after[reachable] == targets[reachable]).all())
    assert torch.equal(result.images[~reachable], images[~reachable])
    near = torch.stack([(images - start).flatten(1).norm(dim=1) for start in starts], 1)
    nearest = near.masked_fill(digits[2] != targets[:, None], torch.inf).amin(1)
    assert bool((result.radius[reachable] < nearest[reachable]).all())


def test_starts_that_do_not_fit_are_refused(curved, images):
    with pytest.raises(ParameterError, match="give starts, a folder with images of the target"):
        HopSkipJump()(curved, images, targets=(curved(images).argmax(1) + 1) % 4)
    wide = torch.rand(2, 3, 4, 5)
    with pytest.raises(ImageError, match=r"starts have shape \(3, 4, 5\), and the attacked images"):
        HopSkipJump(starts=wide)(curved, images)


def test_an_image_without_a_start_comes_back_as_it_was(curved, images):
    labels = curved(images).argmax(1)
    same = images[:1]
    with pytest.warns(UserWarning, match="no image to start from for"):
        result = HopSkipJump(steps=2, starts=same)(curved, images, labels)
    lost = labels == labels[0]
    assert torch.equal(result.success, ~lost)
    assert torch.equal(result.images[lost], images[lost])
    assert bool(result.radius[lost].isinf().all())
    assert [value is None for value in result.notes["start_distance"]] == lost.tolist()


def test_an_objective_is_raised_by_knowing_only_whether_it_is_reached(curved, images):
    scores = curved(images)[:, 1]
    value = float(scores.max()) + 0.5
    result = HopSkipJump(steps=3)(curved, images, objective="class:1", value=value)
    assert result.success.all()
    after = curved(result.images)[:, 1]
    assert bool((after >= value).all())
    assert float(after.max()) < value + 0.05  # at the boundary


def test_digits_are_changed_little_in_few_calls(digits):
    model, images, labels = digits
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.module.register_forward_hook(count)
    result = HopSkipJump(steps=5)(model, images, labels)
    handle.remove()
    assert result.success.all()
    # foolbox asks about one noisy copy at a time: a median of 0.788 in 18,871 calls.
    assert float(result.l2.median()) <= 1.05 * 0.788
    assert calls <= 0.005 * 18_871
    noise = 100 + 141 + 173 + 200 + 223
    assert noise + 60 < int(result.queries.min()) <= int(result.queries.max()) < noise + 160


def test_a_defence_that_draws_at_random_meets_new_draws(images):
    model = HookedModel(Curved(), **PIXELS).defended("randomized-resize smallest=0.7")
    result = HopSkipJump(steps=3, samples=20)(model, images)
    again = HopSkipJump(steps=3, samples=20)(model, images, batch_size=3)
    assert torch.allclose(result.images, again.images, atol=1e-5)


@pytest.mark.slow
def test_digits_cost_foolbox_300_times_as_many_calls(digits):
    """At equal queries the median is no worse than foolbox's, which attacks image by image."""
    import foolbox

    model, images, labels = digits
    images, labels = images[:6], labels[:6]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.module.register_forward_hook(count)
    attack = HopSkipJump(steps=20, queries=None)
    ours = [attack(model, images, labels, seed=seed).l2 for seed in range(3)]
    own_calls, calls = calls / 3, 0
    peer = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
    theirs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for image, label in zip(images, labels, strict=True):
            found = foolbox.attacks.HopSkipJumpAttack(steps=20).run(peer, image[None], label[None])
            theirs.append((found - image).flatten().norm())
    handle.remove()
    # Ours does not grow with the images: what theirs takes for 20.
    assert own_calls <= 0.003 * calls * 20 / len(images)
    medians = sorted(float(each.median()) for each in ours)
    assert medians[1] <= 1.05 * float(torch.stack(theirs).median())
