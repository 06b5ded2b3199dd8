"""Freed memory is used again inside a pass, and handed back after it."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from timmscope.mining.memory import kept_memory


def faults_of_a_large_tensor() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 18)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc only")
def test_a_large_tensor_is_not_mapped_anew_inside() -> None:
    with kept_memory():
        for _ in range(3):
            faults_of_a_large_tensor()
        assert faults_of_a_large_tensor() < 100
    assert faults_of_a_large_tensor() > 1000
