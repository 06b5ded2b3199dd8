"""EOT-PGD: PGD without views, views of known places, and images that fool from every side."""

from __future__ import annotations

import pytest
import torch
from tests.attack.test_foolbox import labelled  # noqa: F401  (a fixture)
from torch.nn import functional

from timmscope import HookedModel, UnsupportedModel, technique
from timmscope.testing import tiny_images, tiny_model
from timmscope_attack.physical_views import _homography, _sampled, draw_views

EOTPGD = technique("eot-pgd")
PGD = technique("pgd")


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_without_views_it_is_pgd_bit_for_bit(norm, random_start, curved, images):
    settings = {"norm": norm, "epsilon": 0.1, "steps": 6, "random_start": random_start}
    ours = EOTPGD(views="identity", scored=0, **settings)(curved, images, seed=3)
    assert torch.equal(ours.images, PGD(**settings)(curved, images, seed=3).images)
    assert ours.forwards.tolist() == ours.backwards.tolist() == [6] * 8
    assert ours.notes == {}


@pytest.mark.parametrize("views", ["camera", "print"])
def test_a_step_follows_the_mean_gradient_of_its_views(views):
    model, images = tiny_model(), tiny_images(2)
    labels = model(images).argmax(1)
    settings = {"views": views, "norm": "l2", "epsilon": 0.5, "random_start": False}
    result = EOTPGD(steps=1, samples=3, step_size=0.1, scored=0, **settings)(model, images)
    drawn = [torch.Generator().manual_seed(row) for row in range(2)]
    total = torch.zeros_like(images)
    for _ in range(3):
        view = draw_views(views, images, drawn)
        leaf = images.clone().requires_grad_()
        loss = functional.cross_entropy(model(view(leaf)), labels, reduction="sum")
        total += torch.autograd.grad(loss, leaf)[0]
    length = total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = (images + 0.1 * total / length).clamp(0, 1)
    assert torch.allclose(result.images, expected, atol=1e-6)
    assert result.forwards.tolist() == result.backwards.tolist() == [3, 3]


@pytest.mark.parametrize("views", ["camera", "print"])
def test_each_image_has_a_view_of_its_own_in_the_box(views):
    images = torch.rand(1, 3, 24, 20).expand(4, -1, -1, -1).clone()
    images[3] = images[3].round()
    seen = draw_views(views, images, generators(4))(images)
    assert seen.shape == images.shape
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1
    assert float((seen[0] - seen[1]).abs().max()) > 0.05
    alone = draw_views(views, images[1:2], generators(1, seed=1))(images[1:2])
    assert torch.allclose(seen[1], alone[0], atol=1e-6)


def test_a_camera_turns_zooms_and_shifts_as_its_numbers_say():
    """A bright point lands where rotation, zoom and shift of the same numbers take it."""
    side, found = 201, []
    for seed in range(6):
        (generator,) = generators(1, seed)
        numbers = torch.rand(6, generator=generator)
        zoom = 0.9 + 0.5 * float(numbers[0])
        angle = torch.deg2rad(torch.tensor(22.5 * (2 * float(numbers[1]) - 1)))
        shift = 0.2 * (2 * numbers[2:4] - 1) * side / 2  # x, y in pixels
        images = torch.zeros(1, 1, side, side)
        images[0, 0, 95:98, 118:121] = 1.0  # a point at x 19, y -4 from the centre
        view = draw_views("camera", images, generators(1, seed))
        leaf = images.clone().requires_grad_()
        seen = view(leaf)[0, 0]
        noisy = functional.avg_pool2d(seen[None, None], 3, 1, 1)[0, 0]
        row, column = divmod(int(noisy.argmax()), side)
        x, y = column - side // 2, row - side // 2
        # The view shows at (x, y) the image at R(angle) · (x, y) / zoom + shift.
        shown_x = (angle.cos() * x - angle.sin() * y) / zoom + shift[0]
        shown_y = (angle.sin() * x + angle.cos() * y) / zoom + shift[1]
        found.append((float(shown_x - 19), float(shown_y + 4)))
    assert all(abs(dx) < 2 and abs(dy) < 2 for dx, dy in found), found


def test_a_plane_that_does_not_move_is_the_image_and_corners_go_where_they_are_sent():
    images = torch.rand(1, 3, 12, 16, dtype=torch.float64)
    still = _homography(torch.zeros(4, 2), (12, 16))
    assert torch.allclose(_sampled(images, still), images, atol=1e-12)
    moves = torch.tensor([[0.5, -0.3], [-0.2, 0.9], [1.0, 0.1], [-0.7, -0.8]])
    grid = _homography(moves, (2000, 2000))[0]
    corners = torch.stack([grid[0, 0], grid[0, -1], grid[-1, -1], grid[-1, 0]])
    expected = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) + 0.2 * moves
    assert torch.allclose(corners, expected.double(), atol=2e-3)


def test_jpeg_passes_gradients_and_needs_one_or_three_channels():
    leaf = torch.rand(2, 1, 16, 16).requires_grad_()
    view = draw_views("print", leaf.detach(), generators(2))
    (gradient,) = torch.autograd.grad(view(leaf).sum(), leaf)
    assert float(gradient.abs().sum()) > 0
    two = torch.rand(1, 2, 16, 16)
    with pytest.raises(UnsupportedModel, match="jpeg compresses images of 1 or 3 channels"):
        draw_views("print", two, generators(1))(two)


def test_the_notes_are_shares_of_unseen_views(images):
    class Bright(torch.nn.Module):
        num_classes = 2

        def forward(self, x):
            mean = x.mean((1, 2, 3)) - 0.5
            return torch.stack([mean, -mean], 1)

    model = HookedModel(Bright(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))
    images = torch.stack([torch.full((3, 8, 8), value) for value in (0.51, 0.9)])
    result = EOTPGD(epsilon=0.2, steps=5, scored=40)(model, images)
    fooled, clean = result.notes["fooled_share"], result.notes["clean_fooled_share"]
    assert fooled[0] == 1
    assert 0 < clean[0] < 1  # light and noise move it across
    assert fooled[1] == clean[1] == 0
    assert result.forwards.tolist() == [5 * 8 + 2 * 40] * 2
    pieces = EOTPGD(epsilon=0.2, steps=5, scored=40)(model, images, batch_size=1)
    assert torch.allclose(result.images, pieces.images, atol=1e-6)
    assert pieces.notes == result.notes


def test_an_objective_and_targets_are_reached_in_most_views(curved, images):
    labels = curved(images).argmax(1)
    quick = {"steps": 8, "samples": 3, "scored": 15}
    aimed = EOTPGD(epsilon=0.4, views="print", **quick)
    result = aimed(curved, images[:4], targets=(labels[:4] + 1) % 4)
    shares, clean = result.notes["fooled_share"], result.notes["clean_fooled_share"]
    assert sum(shares) > sum(clean) + 1
    value = float(curved(images)[:, 2].max()) + 0.2
    raised = EOTPGD(epsilon=0.2, **quick)(curved, images, objective="class:2", value=value)
    assert int(raised.success.sum()) >= 4


@pytest.mark.slow
def test_photographs_fool_in_nearly_every_view_where_pgd_does_not(lite0, labelled):  # noqa: F811
    images, labels = labelled
    images, labels = images[:2], labels[:2]
    attack = EOTPGD(steps=15, samples=6)
    result = attack(lite0, images, labels)
    shares = torch.tensor(result.notes["fooled_share"])
    assert float(shares.mean()) >= 0.95
    still = PGD()(lite0, images, labels).images
    seen = torch.zeros(2)
    drawn = generators(2, seed=100)
    for _ in range(100):
        view = draw_views("camera", images, drawn)
        with torch.no_grad():
            seen += (lite0(view(still)).argmax(1) != labels).float()
    assert float(shares.mean()) >= float(seen.mean()) / 100 + 0.4
