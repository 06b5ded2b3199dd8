"""Loads the model that a store was mined with, and refuses every other model in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timmscope_registry import StoreError, StoreMismatch, TimmscopeError

if TYPE_CHECKING:
    import torch

    from timmscope.models import HookedModel

    from .store import Store


def store_model(
    store: Store, given: HookedModel | None = None, *, device: str | torch.device | None = None
) -> HookedModel:
    """Return the model that a store was mined with: the given one, or else loaded by its id.

    Args:
        store: the store.
        given: the caller's model; its weights and defences are compared with those that the store
            records.
        device: the device for a model that is loaded here.

    Raises:
        StoreError: the model cannot be loaded by its id, or the store is not trusted; the caller
            has to pass it.
        StoreMismatch: the model's weights or defences differ from those that the store was mined
            with.
    """
    record = store.manifest.model
    if given is None:
        from timmscope.models import load_model

        in_memory = record.id.startswith("module:")
        if not in_memory:
            store.require_trust()
        try:
            if in_memory:
                raise StoreError("it was a module in memory")
            given = load_model(record.id, device=device)
        except TimmscopeError as error:
            raise StoreError(
                f"the model of {store.path.name}, {record.id}, cannot be loaded ({error}): "
                "pass it as model="
            ) from error
    owner = f"the model of {store.path.name}, {record.id}"
    require_same_model(given, record.weights_sha256, record.defences, owner)
    return given


def require_same_model(
    model: HookedModel, weights_sha256: str, defences: tuple[str, ...], owner: str
) -> None:
    """Refuse a model whose weights or defences differ from those that computed the rows.

    Args:
        model: the model.
        weights_sha256: digest of the expected weights.
        defences: texts of the expected defences.
        owner: the model with those weights, as the message names it.

    Raises:
        StoreMismatch: they differ.
    """
    if model.weights_sha256 != weights_sha256:
        raise StoreMismatch(
            f"{model.id} has other weights than {owner}: use the model that the store was mined "
            "with",
            differences=[f"weights: {weights_sha256} → {model.weights_sha256}"],
        )
    own = tuple(defence.text() for defence in model.defences)
    if own != defences:
        here, there = ("; ".join(each) or "no defence" for each in (own, defences))
        raise StoreMismatch(
            f"{model.id} has {here}, and {owner} has {there}: use the model that the store was "
            "mined with",
            differences=[f"defences: {there} → {here}"],
        )
