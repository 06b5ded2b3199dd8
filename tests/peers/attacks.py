"""Attacks digits with torchattacks and with timmscope, in an environment that has both.

Prints a JSON object: for each attack the largest difference of two images that fool the model, the
share of images on whose success both agree, and the share that is fooled.
"""

from __future__ import annotations

import json

import torchattacks
from tests.digits.load import digits_network, held_out_digits

from timmscope import technique

EPSILON, STEP, STEPS = 0.25, 0.05, 10


def main() -> None:
    """Compare the attacks on 64 held-out digits."""
    images, labels = held_out_digits(64)
    model = digits_network("trades")  # whose gradients do not vanish
    module = model.as_module()
    right = model(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    theirs = {
        "fgsm": torchattacks.FGSM(module, eps=EPSILON),
        "pgd linf": torchattacks.PGD(
            module, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False
        ),
        "pgd l2": torchattacks.PGDL2(module, eps=1.0, alpha=0.2, steps=STEPS, random_start=False),
    }
    pgd = {"steps": STEPS, "random_start": False}
    ours = {
        "fgsm": technique("fgsm")(epsilon=EPSILON),
        "pgd linf": technique("pgd")(epsilon=EPSILON, step_size=STEP, **pgd),
        "pgd l2": technique("pgd")(norm="l2", epsilon=1.0, step_size=0.2, **pgd),
    }
    found = {}
    for name, attack in theirs.items():
        expected = attack(images, labels)
        got = ours[name](model, images, labels.tolist())
        fooled = model(expected).argmax(1) != labels
        found[name] = {
            "difference": float((expected - got.images)[got.success].abs().amax()),
            "same": float((fooled == got.success).float().mean()),
            "fooled": float(fooled.float().mean()),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
