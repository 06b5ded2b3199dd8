"""A training that is killed or interrupted anywhere ends with the bytes of one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processes import run_code
from tests.training.conftest import Plain, pixels, same_bytes, small
from torch.nn import functional

from timmscope import StoreCorrupted, StoreError, StoreMismatch, TechniqueError
from timmscope.store.lock import StoreLock
from timmscope.techniques.training import data as training_data
from timmscope.techniques.training.checkpoint import read
from timmscope.testing.subjects import recorded_progress


def killed(photos: Path, folder: Path, kills: int, seed: int) -> dict:
    done = run_code("tests.training.killing", photos, folder, kills, seed)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_between_writing_syncing_and_renaming_it_ends_with_the_same_bytes(photos, tmp_path):
    told = killed(photos, tmp_path, kills=8, seed=0)
    assert told["same"], told
    assert told["left"] == [[".lock", "card.json", "weights.safetensors"]] * 4
    assert {what for what, died in told["outcomes"] if died} >= {"write", "fsync", "rename"}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_fifty_moments_it_ends_with_the_same_bytes(photos, tmp_path, seed):
    told = killed(photos, tmp_path, kills=50, seed=seed)
    assert told["same"], told


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "schedule": "cosine", "warmup": 0.2},
        {"optimizer": "sgd", "weight_decay": 0.01, "max_gradient_norm": 0.5},
        {"optimizer": "adamw", "schedule": "linear"},
    ],
    ids=lambda settings: settings["optimizer"],
)
def test_interrupted_at_several_steps_it_ends_with_the_same_bytes(photos, tmp_path, settings):
    training = Plain(**settings)
    training(small(), photos, output=tmp_path / "whole", seed=2)
    stopped = tmp_path / "stopped"
    for stop in (4, 6, 5):
        with recorded_progress(stop=stop), pytest.raises(KeyboardInterrupt):
            training(small(), photos, output=stopped, seed=2, checkpoint_every=2)
        assert read(stopped)[0].step > 0
    training(small(), photos, output=stopped, seed=2, checkpoint_every=2)
    assert same_bytes(tmp_path / "whole", stopped)


def test_images_read_again_in_every_epoch_give_the_same_bytes(photos, tmp_path, monkeypatch):
    Plain()(small(), photos, output=tmp_path / "kept")
    monkeypatch.setattr(training_data, "MEMORY_BYTES", 0)
    for workers in (0, 2):
        again = tmp_path / f"read-{workers}"
        with recorded_progress(stop=5), pytest.raises(KeyboardInterrupt):
            Plain()(small(), photos, output=again, workers=workers, checkpoint_every=1)
        Plain()(small(), photos, output=again, workers=workers)
        assert same_bytes(tmp_path / "kept", again)


class LateNoise(Plain):
    """Noise from torch's own generator, but not before the second epoch."""

    def loss(self, network, batch, progress):
        noise = 0.1 * torch.randn(batch.images.shape) if progress.epoch else 0
        images = (batch.images + noise).clamp(0, 1)
        return {"total": functional.cross_entropy(network(images), batch.labels)}


@pytest.mark.parametrize("training", [Plain(), LateNoise()], ids=["dropout", "late noise"])
def test_random_numbers_of_torch_depend_on_the_seed_alone(photos, tmp_path, training):
    dropout = 0.5 if type(training) is Plain else 0.0
    for seed in (1, 2):
        torch.manual_seed(seed)
        training(small(dropout), photos, output=tmp_path / str(seed), seed=7)
    assert same_bytes(tmp_path / "1", tmp_path / "2")
    training(small(dropout), photos, output=tmp_path / "other", seed=8)
    assert not same_bytes(tmp_path / "1", tmp_path / "other")


def test_dropout_draws_nothing_from_the_generators_of_the_process(photos, tmp_path):
    before = torch.get_rng_state()
    Plain()(small(), photos, output=tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())


def test_a_training_with_other_parameters_is_refused_and_shows_the_difference(photos, tmp_path):
    out = tmp_path / "out"
    with recorded_progress(stop=4), pytest.raises(KeyboardInterrupt):
        Plain()(small(), photos, output=out, checkpoint_every=1)
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    with pytest.raises(StoreMismatch, match=r"\(epochs: 3 → 4; learning_rate: 0.05 → 0.1\)"):
        Plain(learning_rate=0.1, epochs=4)(small(), photos, output=out)
    with pytest.raises(StoreMismatch, match=r"\(seed: 0 → 1\)"):
        Plain()(small(), photos, output=out, seed=1)
    changed = small()
    changed.module[0].weight.data += 1
    with pytest.raises(StoreMismatch, match=r"model_sha256: .* → "):
        Plain()(changed, photos, output=out)
    assert (out / "checkpoint.safetensors").read_bytes() == checkpoint


def test_other_images_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    Plain(epochs=1)(small(), photos, output=out)
    with pytest.raises(StoreMismatch, match=r"\(data.images: 32 → 40; data.held_out_images: 8"):
        Plain(epochs=1)(small(), photos, held_out=photos, output=out)
    images, labels = pixels(40)
    np.savez(photos, images=images ^ 1, labels=labels)
    with pytest.raises(StoreMismatch, match=r"\(data.fingerprint: .*; data.held_out_fingerprint"):
        Plain(epochs=1)(small(), photos, output=out)


def test_a_finished_training_is_returned_without_training_again(photos, tmp_path):
    first = Plain()(small(), photos, output=tmp_path / "out")
    with recorded_progress() as progress:
        again = Plain()(small(), photos, output=tmp_path / "out")
    assert [name for name, _, _ in progress.tasks] == ["reading images"]
    assert torch.equal(first.losses, again.losses)
    assert first.held_out == again.held_out


def test_a_folder_that_holds_something_else_is_refused_and_stays(photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match=r"holds thesis.txt and no training"):
        Plain()(small(), photos, output=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    with pytest.raises(StoreError, match="no folder can be made here"):
        Plain()(small(), photos, output=photos / "below-a-file")


def test_two_processes_do_not_train_in_one_folder(photos, tmp_path):
    (tmp_path / "out").mkdir()
    with StoreLock(tmp_path / "out"), pytest.raises(StoreError, match="writing to this training"):
        Plain()(small(), photos, output=tmp_path / "out")


def test_a_damaged_checkpoint_is_refused_in_one_line(photos, tmp_path):
    with recorded_progress(stop=4), pytest.raises(KeyboardInterrupt):
        Plain()(small(), photos, output=tmp_path / "out", checkpoint_every=1)
    file = tmp_path / "out" / "checkpoint.safetensors"
    sound = file.read_bytes()
    for place in (3, 200, len(sound) - 5):
        damaged = bytearray(sound)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(StoreCorrupted, match="delete it to begin again") as caught:
            Plain()(small(), photos, output=tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_resumed_with_other_threads_it_says_so_and_its_card_names_both(
    photos, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with recorded_progress(stop=4), pytest.raises(KeyboardInterrupt):
        Plain()(small(), photos, output=out, checkpoint_every=1)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.warns(
        UserWarning, match=rf"resumes elsewhere \(threads: {threads} → {threads + 1}"
    ):
        result = Plain()(small(), photos, output=out)
    assert [each["threads"] for each in result.card["environment"]] == [threads, threads + 1]


class Explodes(Plain):
    """The loss is NaN at the tenth step."""

    def loss(self, network, batch, progress):
        terms = super().loss(network, batch, progress)
        return {"total": terms["total"] * (torch.nan if progress.step == 9 else 1)}


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(
    photos, tmp_path
):
    out = tmp_path / "out"
    with pytest.raises(TechniqueError, match=r"stopped at step 10 of 12: the loss is nan; the "
                       r"checkpoint of step 8 is kept"):  # fmt: skip
        Explodes()(small(0), photos, output=out, checkpoint_every=4)
    record, tensors = read(out)
    assert record.step == 8
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_weights_that_overflow_are_never_a_checkpoint(photos, tmp_path):
    with pytest.raises(
        TechniqueError, match=r"stopped at step \d+ of 12: .* is (nan|not finite|inf)"
    ):
        Plain(learning_rate=1e38, optimizer="sgd")(
            small(0), photos, output=tmp_path / "out", checkpoint_every=1
        )
    _, tensors = read(tmp_path / "out")
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_every_rename_it_ends_with_the_same_bytes(photos, tmp_path, monkeypatch, when):
    """The renames are those of four checkpoints, of the weights and of the card."""
    training, real = Plain(epochs=2), Path.replace
    training(small(0), photos, output=tmp_path / "whole")
    for number in range(1, 7):
        left = number

        def stops(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            moved = real(self, target) if left or when == "after" else self
            if left == 0:
                raise KeyboardInterrupt
            return moved

        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stops)
            with pytest.raises(KeyboardInterrupt):
                training(small(0), photos, output=out, checkpoint_every=3)
        training(small(0), photos, output=out, checkpoint_every=3)
        assert same_bytes(tmp_path / "whole", out), number
        left_over = {entry.name for entry in out.iterdir()}
        assert left_over == {".lock", "card.json", "weights.safetensors"}
