"""Benchmarks of attacks beside foolbox: the same images, steps and radii.

Foolbox gets a frozen model and runs in the same process. `stop_when_fooled` is what foolbox's
attacks of fixed radius do not have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from tests.bench.pairs import Pair, compare
from tests.digits.load import digits_read_right

from timmscope import load_model, technique


def attacks() -> Iterator[Pair]:
    """Time attacks of a photograph's network and of a network of digits."""
    import foolbox

    kinds = foolbox.attacks
    model = load_model("pip:efficientnet-lite0")
    peer = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, labels = foolbox.samples(peer, dataset="imagenet", batchsize=20)
    right = model(images).argmax(1) == labels
    images, labels = images[right][:8], labels[right][:8]
    theirs = kinds.LinfPGD(steps=20, abs_stepsize=0.125 / 255, random_start=False)
    for how, settings in (("timmscope", {}), ("timmscope, stopping", {"stop_when_fooled": True})):
        ours = technique("pgd")(
            epsilon=1 / 255, step_size=0.125 / 255, steps=20, random_start=False, **settings
        )
        yield compare(
            "pgd efficientnet-lite0, 1/255",
            (how, lambda ours=ours: ours(model, images, labels)),
            ("foolbox", lambda: theirs(peer, images, labels, epsilons=1 / 255)),
            runs=3,
        )
    model, images, labels = digits_read_right("standard", 50)
    peer = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
    for name, settings, attack in (
        (
            "carlini-wagner",
            {"steps": 100},
            kinds.L2CarliniWagnerAttack(binary_search_steps=9, steps=100),
        ),
        ("ddn", {"steps": 100}, kinds.DDNAttack(steps=100)),
        ("fmn", {"steps": 100, "norm": "linf"}, kinds.LInfFMNAttack(steps=100)),
        ("deepfool", {}, kinds.L2DeepFoolAttack(steps=50, candidates=10)),
    ):
        ours = technique(name)(**settings)
        yield compare(
            f"{name} digits",
            ("timmscope", lambda ours=ours: ours(model, images, labels)),
            ("foolbox", lambda attack=attack: attack(peer, images, labels, epsilons=None)),
            runs=3,
        )
