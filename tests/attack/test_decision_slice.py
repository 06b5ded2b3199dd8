"""Decision slices show the values that a model has at each point, and boundaries where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.attack.conftest import Curved, distances
from torch import Tensor, nn

from timmscope import HookedModel, ObjectiveError, ParameterError, load_result, technique
from timmscope_attack import DecisionPlanes, DecisionSlice


def size_of(change: Tensor, norm: str) -> Tensor:
    return {"linf": change.abs().amax(), "l2": change.norm(), "l1": change.abs().sum()}[norm]


@pytest.mark.parametrize(
    ("attack", "norm", "which"),
    [("deepfool overshoot=0", "l2", 0), ("deepfool norm=linf overshoot=0", "linf", 1)],
)
def test_the_boundary_of_a_linear_model_is_a_straight_line_at_the_known_distance(
    plane: HookedModel, images: Tensor, attack: str, norm: str, which: int
) -> None:
    images = images.double()
    found = DecisionSlice(attack=attack, resolution=21, extent=3)(plane, images)
    assert found.norm == norm
    distance = distances(plane, images)[which]
    assert torch.allclose(found.boundary()[:, 0, 0], distance, rtol=1e-5)
    weight = plane.module.weight.detach()
    sign = torch.where(found.labels == 1, 1.0, -1.0).double()
    for row in range(len(images)):
        along = (found.adversarial[row] - images[row]).double() / found.sizes[row]
        steep = [float(each.flatten().double() @ weight) for each in (along, found.random[row])]
        here = float(images[row].flatten() @ weight + plane.module.bias.detach())
        across = found.places[row]
        expected = sign[row] * (here + across * steep[0] + across[:, None] * steep[1])
        assert torch.allclose(found.margins[row, 0].double(), expected, atol=1e-5)
        assert torch.equal(found.classes[row, 0] == found.labels[row], found.margins[row, 0] > 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_both_directions_have_norm_one_and_are_orthogonal(
    curved: HookedModel, images: Tensor, norm: str
) -> None:
    found = DecisionSlice(attack=f"pgd norm={norm} epsilon=0.1 steps=5", resolution=5)(
        curved, images[:3]
    )
    for row in range(3):
        along = (found.adversarial[row] - images[row]) / found.sizes[row]
        assert float(size_of(along, norm)) == pytest.approx(1, abs=1e-5)
        assert float(size_of(found.random[row], norm)) == pytest.approx(1, abs=1e-5)
        product = float((along * found.random[row]).sum())
        assert abs(product) <= 1e-5 * float(along.norm() * found.random[row].norm())
    assert not torch.allclose(found.random[0], found.random[1])


def test_each_point_is_what_the_model_says_of_that_image_alone(
    curved: HookedModel, images: Tensor
) -> None:
    other = HookedModel(Curved(size=8), mean=(0.5,) * 3, std=(0.3,) * 3, input_size=(3, 8, 8))
    run = DecisionSlice(
        attack="pgd epsilon=0.2 steps=5", other=other, resolution=7, extent=4, batch_size=5
    )
    found = run(curved, images[:2], seed=3)
    assert found.models == [curved.id, other.id]
    for row in range(2):
        along = (found.adversarial[row] - images[row]) / found.sizes[row]
        for i, b in enumerate(found.places[row].tolist()):
            for j, a in enumerate(found.places[row].tolist()):
                point = (images[row] + a * along + b * found.random[row])[None]
                larger = nn.functional.interpolate(point, (8, 8), mode="bilinear", antialias=True)
                for place, (model, seen) in enumerate([(curved, point), (other, larger)]):
                    logits = model(seen)[0].tolist()
                    label = int(found.labels[row])
                    rest = max(value for index, value in enumerate(logits) if index != label)
                    assert int(found.classes[row, place, i, j]) == logits.index(max(logits))
                    margin = float(found.margins[row, place, i, j])
                    assert margin == pytest.approx(logits[label] - rest, abs=1e-5)


def test_the_changed_image_is_a_point_of_the_plane(curved: HookedModel, images: Tensor) -> None:
    found = DecisionSlice(attack="pgd epsilon=0.3 steps=10", resolution=9, extent=2)(curved, images)
    fooled = curved(found.adversarial).argmax(1)
    assert bool((fooled != found.labels).any())
    assert torch.equal(found.classes[:, 0, 4, 6], fooled)
    assert torch.equal(found.classes[:, 0, 4, 4], found.labels)


def test_it_keeps_to_the_batch_size_and_counts_the_cost_that_it_states(images: Tensor) -> None:
    network, sizes = Curved(), []
    model = HookedModel(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))
    model.layers  # noqa: B018  (inspects the model)
    network.first.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    DecisionSlice(attack="fgsm", resolution=5, batch_size=4)(model, images)
    assert max(sizes) == 4
    assert sum(sizes) == 8 * (1 + 1 + 5 * 5)  # predictions, the attack and the planes


def test_the_planes_do_not_depend_on_the_batch_size(curved: HookedModel, images: Tensor) -> None:
    noisy = curved.defended(["randomized-resize"])
    run = {"attack": "pgd epsilon=0.1 steps=3", "resolution": 5}
    one, all_at_once = (
        DecisionSlice(**run, batch_size=size)(noisy, images[:3], seed=5) for size in (1, 25)
    )
    assert torch.equal(one.classes, all_at_once.classes)
    assert torch.allclose(one.margins, all_at_once.margins, atol=1e-5)
    again = DecisionSlice(**run)(noisy, images[:3], seed=6)
    assert not torch.allclose(again.random, one.random)


def test_boundaries_beyond_the_plane_are_infinite_and_those_of_another_label_zero(
    curved: HookedModel, images: Tensor
) -> None:
    tilted = Curved()
    tilted.last.bias.data += torch.tensor([40.0, 0, 0, 0])
    other = HookedModel(tilted, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 4, 4))
    found = DecisionSlice(attack="pgd epsilon=0.001 steps=2", other=other, resolution=5)(
        curved, images
    )
    boundary = found.boundary()
    assert bool(boundary[:, 0].isinf().all())
    changed = found.labels != 0
    assert bool(changed.any())
    assert bool((boundary[changed, 1] == 0).all())
    assert bool(boundary[~changed, 1].isinf().all())
    row = found.summary()[1]
    assert (row["image"], row["model"], row["predicted"]) == (0, other.id, "class 0")


def test_the_result_is_saved_drawn_and_loaded(
    curved: HookedModel, images: Tensor, tmp_path: Path
) -> None:
    found = DecisionSlice(resolution=5, other=curved)(curved, images[:2])
    folder = found.save(tmp_path / "out")
    assert (folder / "figure.png").stat().st_size > 10_000
    loaded = load_result(folder)
    assert isinstance(loaded, DecisionPlanes)
    assert torch.equal(loaded.margins, found.margins)
    assert loaded.summary() == found.summary()
    assert len(loaded.figure().axes) == 2 * (2 + 2 + 1)  # pictures, planes, legend


def test_unusable_calls_are_one_clear_line(curved: HookedModel, images: Tensor) -> None:
    run = technique("decision-slice")
    with pytest.raises(ParameterError, match="40 points have none in the middle"):
        run(resolution=40)
    with pytest.raises(ParameterError, match="needs images"):
        run()(curved)
    with pytest.raises(ParameterError, match=r"pgd changes nothing in image 0.*larger epsilon"):
        run(attack="pgd epsilon=0")(curved, images)
    encoder = HookedModel(nn.Flatten(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))
    one = HookedModel(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), mean=(0,) * 3, std=(1,) * 3,
        input_size=(3, 4, 4),
    )  # fmt: skip
    with pytest.raises(ObjectiveError, match="one class, so there is no boundary"):
        run()(one, images)
    with pytest.raises(ObjectiveError, match="has 48 classes, and the goal is a class of 4"):
        run(attack="fgsm", other=encoder)(curved, images)
    grey = HookedModel(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), mean=(0,), std=(1,), input_size=(1, 4, 4)
    )
    with pytest.raises(ParameterError, match=r"second model .* takes images of 1 channels"):
        run(other=grey)(curved, images)
