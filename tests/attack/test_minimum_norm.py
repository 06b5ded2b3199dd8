"""Attacks of least norm: exact distances of linear models, and foolbox's figures on digits."""

from __future__ import annotations

import warnings

import foolbox
import pytest
import torch
from tests.attack.conftest import distances
from tests.digits.load import digits_read_right
from torch import Tensor

from timmscope import HookedModel, ParameterError, channel, technique
from timmscope_attack.targeted_linf import proximal

SETTINGS = {
    "carlini-wagner": {"steps": 150},
    "ddn": {"steps": 200},
    "deepfool": {},
    "fmn": {"steps": 300},
    "sigma-zero": {"steps": 300},
    "targeted-linf-objective": {"loss": "margin", "steps": 40},
}
TOLERANCE = {
    "carlini-wagner": (1.06, 0.003),  # Adam's steps are 0.01 long
    "ddn": (1.002, 0),
    "deepfool": (1.0201, 1.021e-4),  # it goes 2 % and 1e-4 beyond the boundary
    "fmn": (1.0005, 0),
}
"""Factor of the exact distance, and pixel units, by which a result may be larger than it."""


def least_l0(model: HookedModel, image: Tensor) -> int:
    """The fewest pixels that flip a hyperplane: those that can move the margin most come first."""
    weight = model.module.weight.detach().view(3, 4, 4)
    margin = float((image * weight).sum() + model.module.bias.detach())
    towards = -weight if margin > 0 else weight
    gains = torch.where(towards > 0, towards * (1 - image), -towards * image).sum(0).flatten()
    reachable = gains.sort(descending=True).values.cumsum(0)
    return int((reachable <= abs(margin)).sum()) + 1


class TestLinearModel:
    @pytest.mark.parametrize(
        ("name", "norm"),
        [
            ("carlini-wagner", "l2"),
            ("carlini-wagner", "linf"),
            ("ddn", "l2"),
            ("deepfool", "l2"),
            ("deepfool", "linf"),
            ("fmn", "l2"),
            ("fmn", "linf"),
            ("fmn", "l1"),
        ],
    )
    def test_the_distance_to_a_hyperplane_is_found(self, name, norm, plane, images):
        images = images[: 3 if name == "carlini-wagner" else 8].double()
        l2, linf = distances(plane, images)
        l1 = l2 * plane.module.weight.norm() / plane.module.weight.abs().max()
        exact = {"l2": l2, "linf": linf, "l1": l1}[norm].detach()
        settings = SETTINGS[name] | ({"steps": 40} if norm == "linf" else {})
        result = technique(name)(norm=norm, **settings)(plane, images)
        assert bool(result.success.all())
        factor, more = TOLERANCE[name]
        assert bool((result.radius >= exact * (1 - 1e-6)).all())
        assert bool((result.radius <= exact * factor + more).all()), result.radius / exact

    @pytest.mark.parametrize("name", ["fmn", "sigma-zero"])
    def test_the_fewest_pixels_are_found(self, name, plane, images):
        images = images.double()
        fewest = torch.tensor([least_l0(plane, image) for image in images])
        result = technique(name)(norm="l0", **SETTINGS[name])(plane, images)
        assert bool(result.success.all())
        assert bool((result.l0 >= fewest).all())
        assert float((result.l0 - fewest).double().mean()) <= 0.5

    def test_one_step_of_deepfool_crosses_a_hyperplane(self, plane, images):
        images = images.double()
        result = technique("deepfool")(overshoot=1e-6)(plane, images)
        l2, _ = distances(plane, images)
        torch.testing.assert_close(result.radius, l2.detach() + 1e-4, rtol=1e-3, atol=0)
        assert result.forwards.tolist() == [3] * 8  # candidates, the step, and the check
        assert result.backwards.tolist() == [2] * 8


class TestBudget:
    def test_larger_changes_than_epsilon_do_not_count(self, plane, images):
        images = images.double()
        l2, _ = distances(plane, images)
        epsilon = float(l2.median())
        result = technique("ddn")(steps=100, epsilon=epsilon)(plane, images)
        assert result.success.tolist() == (l2 * 1.001 < epsilon).tolist()
        missed = ~result.success
        assert torch.equal(result.images[missed], images[missed])
        assert bool(result.radius[missed].isinf().all())

    def test_changes_of_256_levels_survive_8_bits(self, curved, images):
        images = (images * 255).round() / 255
        result = technique("ddn")(levels=256)(curved, images)
        assert bool(result.success.all())
        assert torch.equal(result.success_8bit, result.success)

    def test_a_margin_is_kept(self, curved, images):
        for norm in ("l2", "linf"):
            attack = technique("carlini-wagner")(norm=norm, steps=30, confidence=0.2)
            result = attack(curved, images[:3])
            assert bool(result.success.all())
            logits = curved(result.images)
            own = logits.gather(1, result.labels[:, None])[:, 0]
            other = logits.scatter(1, result.labels[:, None], -torch.inf).amax(1)
            assert bool((other - own >= 0.2 - 1e-5).all())


@pytest.mark.parametrize("name", list(SETTINGS))
class TestEachAttack:
    def test_targets_are_reached(self, name, curved, images):
        labels = curved(images).argmax(1)
        targets = (labels + 1) % 4
        result = technique(name)(**SETTINGS[name])(curved, images, labels, targets=targets)
        assert float(result.success.float().mean()) >= 0.75
        predicted = curved(result.images).argmax(1)
        assert torch.equal(predicted == targets, result.success)

    def test_an_objective_is_reached(self, name, curved, images):
        aim = channel("first", 3)
        value = float(curved.score(images, aim).max()) + 0.05
        result = technique(name)(**SETTINGS[name])(curved, images, objective=aim, value=value)
        assert bool(result.success.all())
        assert bool((curved.score(result.images, aim) >= value).all())

    def test_an_image_is_attacked_alike_alone_and_in_a_batch(self, name, curved, images):
        curved.module.double()
        images = images[:3].double()
        settings = SETTINGS[name] | {"steps": 15}
        together = technique(name)(**settings)(curved, images)
        alone = technique(name)(**settings)(curved, images, batch_size=1)
        torch.testing.assert_close(together.images, alone.images, atol=1e-5, rtol=0)
        assert torch.equal(together.success, alone.success)
        assert torch.equal(together.forwards, alone.forwards)

    def test_a_constant_model_leaves_the_image_and_says_that_gradients_are_zero(
        self, name, curved, images
    ):
        with torch.no_grad():
            curved.module.last.weight.zero_()
        with pytest.warns(UserWarning, match="zero gradient on 2 of 2"):
            result = technique(name)(**SETTINGS[name] | {"steps": 3})(curved, images[:2])
        assert torch.equal(result.images, images[:2])
        assert result.radius.tolist() == [torch.inf] * 2


class TestProximalStep:
    def test_it_is_the_minimum_of_the_penalised_distance(self):
        generator = torch.Generator().manual_seed(5)
        images = torch.rand(3, 1, 2, 3, generator=generator).double()
        images[0, 0, 0] = torch.tensor([0.0, 1.0, 0.999])
        values = torch.randn(3, 1, 2, 3, generator=generator).double()
        prices = torch.tensor([0.01, 0.8, 30.0]).double().view(3, 1, 1, 1)
        found = proximal(values, images, prices)

        def cost(change: Tensor) -> Tensor:
            size = change.abs().flatten(1).amax(1)
            return ((change - values) ** 2).flatten(1).sum(1) / 2 + prices.flatten() * size

        least = cost(found)
        assert not found[2].any()  # the price is above the sum of the values
        for limit in torch.linspace(0, 1, 4001).tolist():  # the best change of each size
            rival = values.clamp(-limit, limit)
            rival = torch.minimum(torch.maximum(rival, -images), 1 - images)
            assert bool((least <= cost(rival) + 1e-9).all())

    def test_nothing_changes_on_a_linear_model_while_the_price_is_above_the_slopes(
        self, plane, images
    ):
        images = images.double()
        slopes = float(plane.module.weight.abs().sum())
        attack = technique("targeted-linf-objective")(
            loss="margin", penalties=(1.01 * slopes, 0.99 * slopes), steps=200
        )
        notes = attack(plane, images).notes
        first, second = (notes[f"linf at λ {factor * slopes:g}"] for factor in (1.01, 0.99))
        assert first == [0.0] * 8
        assert min(second) > 0
        # Values move together until so many are at the edge that the others weigh less than λ.
        weight = plane.module.weight.detach()
        away = torch.where(plane(images)[:, 1] > 0, -1.0, 1.0).view(-1, 1) * weight
        room = torch.where(away > 0, 1 - images.flatten(1), images.flatten(1))
        for row, largest in enumerate(second):
            sizes = torch.cat([room[row], torch.zeros(1)]).unique()
            free = [float(weight.abs()[room[row] > size].sum()) for size in sizes]
            end = next(float(s) for s, f in zip(sizes, free, strict=True) if f < 0.99 * slopes)
            assert largest == pytest.approx(end, abs=1e-6)

    def test_the_change_falls_with_the_price(self, curved, images):
        result = technique("targeted-linf-objective")(steps=40)(curved, images)
        changes = [v for k, v in result.notes.items() if k.startswith("linf at")]
        for larger, smaller in zip(changes[1:], changes, strict=False):
            assert all(a >= b - 0.02 for a, b in zip(larger, smaller, strict=True))


def test_penalties_are_positive():
    with pytest.raises(ParameterError, match="penalties"):
        technique("targeted-linf-objective")(penalties=(0.0,))


@pytest.fixture(scope="module")
def digits() -> tuple[HookedModel, Tensor, Tensor]:
    """A network and digits that it reads right."""
    return digits_read_right("standard", 40)


class TestDigits:
    def test_deepfool_is_foolbox_s(self, digits):
        model, images, labels = digits
        peer = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
        for norm, kind in (
            ("l2", foolbox.attacks.L2DeepFoolAttack),
            ("linf", foolbox.attacks.LinfDeepFoolAttack),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs, _, broken = kind(steps=50, candidates=10, overshoot=0.02)(
                    peer, images, labels, epsilons=None
                )
            result = technique("deepfool")(norm=norm)(model, images, labels)
            assert bool(result.success.all())
            assert bool(broken.all())
            sizes = (theirs - images).flatten(1)
            sizes = sizes.norm(dim=1) if norm == "l2" else sizes.abs().amax(1)
            assert float(result.radius.median()) <= 1.005 * float(sizes.median())

    def test_ddn_and_fmn_find_smaller_changes_than_deepfool(self, digits):
        model, images, labels = digits
        far = technique("deepfool")()(model, images, labels).radius
        for name in ("ddn", "fmn"):
            result = technique(name)()(model, images, labels)
            assert bool(result.success.all())
            assert float((result.radius < far).double().mean()) >= 0.85
            assert float((result.radius / far).median()) < 0.98
            assert result.forwards.tolist() == [100] * len(images)


def test_the_figure_gives_the_size_in_the_attacks_norm(curved, images):
    for norm, text in (("l0", "pixel"), ("l1", "L1 "), ("l2", "/255")):
        result = technique("fmn")(norm=norm, steps=20)(curved, images[:1])
        assert any(text in each.get_text() for each in result.figure().texts)


@pytest.mark.slow
def test_carlini_and_wagner_find_foolbox_s_distance_in_fewer_passes(digits):
    model, images, labels = digits
    images, labels = images[:20], labels[:20]
    calls: list[int] = []
    module = model.as_module()
    module.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    peer = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=200)
    theirs, _, broken = attack(peer, images, labels, epsilons=None)
    assert bool(broken.all())
    result = technique("carlini-wagner")()(model, images, labels)
    assert bool(result.success.all())
    distance = float((theirs - images).flatten(1).norm(dim=1).median())
    assert float(result.radius.median()) == pytest.approx(distance, rel=0.005)
    assert int(result.forwards.sum()) < sum(calls)  # 30,431 of 31,260


@pytest.mark.slow
def test_pgd_that_stops_takes_a_third_of_foolbox_s_passes_at_one_grey_level(lite0):
    peer = foolbox.PyTorchModel(lite0.as_module(), bounds=(0, 1), device="cpu")
    images, labels = foolbox.samples(peer, dataset="imagenet", batchsize=20)
    right = lite0(images).argmax(1) == labels
    images, labels = images[right][:10], labels[right][:10]
    pgd = technique("pgd")(epsilon=1 / 255, steps=20, random_start=False, stop_when_fooled=True)
    result = pgd(lite0, images, labels)
    whole = technique("pgd")(epsilon=1 / 255, steps=20, random_start=False)
    assert torch.equal(result.success, whole(lite0, images, labels).success)
    assert float(result.forwards.double().mean()) <= 0.35 * 20  # foolbox takes all steps
