"""Runs AutoAttack of pyautoattack and of timmscope on digits, in an environment that has both.

Prints a JSON object: for each norm the number of 100 digits that either leaves robust.
"""

from __future__ import annotations

import json
import sys

import torch
from pyautoattack import AutoAttack
from tests.digits.load import digits_network, held_out_digits

from timmscope import technique

DIGITS = 100
QUERIES = 500
RADII = {"linf": 0.1, "l2": 0.5}


def main(network: str, norms: list[str]) -> None:
    """Compare the robust digits of one network."""
    images, labels = held_out_digits(DIGITS)
    model = digits_network(network)
    module = model.as_module()
    found = {}
    for norm in norms:
        radius = RADII[norm]
        peer = AutoAttack(module, norm=norm.capitalize(), eps=radius, device="cpu", seed=0)
        peer.square.n_queries = QUERIES
        changed = peer.run_standard_evaluation(images, labels)[0]
        with torch.no_grad():
            theirs = int((module(changed).argmax(1) == labels).sum())
        made = technique("autoattack")(norm=norm, epsilon=radius, queries=QUERIES)
        result = made(model, images, labels.tolist())
        ours = int((~result.success & ~result.already_wrong).sum())
        found[norm] = {"theirs": theirs, "ours": ours}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
