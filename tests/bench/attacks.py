"""Benchmarks of attacks beside foolbox: the same images, steps and radii.

Foolbox gets a frozen model and runs in the same process. `stop_when_fooled` is what foolbox's
attacks of fixed radius do not have.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tests.bench.pairs import Pair, compare
from tests.digits.images import write_digits
from tests.digits.load import digits_network

from timmscope import HookedModel, load_model, technique


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
    model, images, labels = _digits(50)
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


def _digits(count: int) -> tuple[HookedModel, torch.Tensor, torch.Tensor]:
    """Return a network and digits that it reads right."""
    model = digits_network("standard")
    with tempfile.TemporaryDirectory() as folder:
        _, file = write_digits(Path(folder))
        with np.load(file) as arrays:
            images = torch.from_numpy(arrays["images"])[:, None].float() / 255
            labels = torch.from_numpy(arrays["labels"])
    right = model(images).argmax(1) == labels
    return model, images[right][:count], labels[right][:count]
