"""Lists the model source `digits:` without importing torch; `tests.digits.load` registers it."""

from collections.abc import Iterator

from timmscope_registry import ModelSourceSpec, hookimpl


@hookimpl
def timmscope_model_sources() -> Iterator[ModelSourceSpec]:
    """Yield the scheme of the small networks."""
    yield ModelSourceSpec(
        scheme="digits",
        summary="A small convolutional network for 8×8 digits with random weights.",
        impl="tests.digits.network:load",
        example="digits:cnn?seed=0",
    )
