"""timm works with a torchvision whose operators cannot load; a working one is not changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from timmscope_registry.hooks import ensure_torchvision

BROKEN = """
import torch
from torchvision import part
torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "Meta")
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
"""

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
from timmscope_registry.hooks import ensure_torchvision
import torchvision
assert torchvision.__file__.startswith(sys.argv[1]), torchvision.__file__
first = torchvision
ensure_torchvision()
import torchvision
assert torchvision is first
print("imported")
"""


def fake(folder: Path, source: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    (folder / "torchvision" / "part.py").write_text("")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose torchvision is imported instead of the installed one."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_missing_operators_are_declared(tmp_path: Path) -> None:
    fake(tmp_path, BROKEN)
    command = [sys.executable, "-c", PROBE, str(tmp_path)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.stdout == "imported\n", outcome.stderr


def test_a_working_torchvision_is_imported_unchanged(folder: Path) -> None:
    fake(folder, "healthy = 'yes'")
    ensure_torchvision()
    assert sys.modules.pop("torchvision").healthy == "yes"


def test_other_import_errors_are_raised(folder: Path) -> None:
    fake(folder, "raise RuntimeError('disk on fire')")
    with pytest.raises(RuntimeError, match="disk on fire"):
        ensure_torchvision()


def test_nothing_happens_without_torchvision(folder: Path) -> None:
    fake(folder, "raise ModuleNotFoundError('no torchvision', name='torchvision')")
    ensure_torchvision()
    assert "torchvision" not in sys.modules
