"""What there is. Nothing here imports torch."""

from collections.abc import Iterator

from timmscope_registry import (
    CollectorSpec,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    TechniqueSpec,
    hookimpl,
)


@hookimpl
def timmscope_techniques() -> Iterator[TechniqueSpec]:
    """One technique of each base, and one with a further model."""
    yield TechniqueSpec(
        name="centre-bias",
        family="attribution",
        summary="What photographers do: a bump in the middle, to compare maps with.",
        impl="timmscope_example.attribution:CentreBias",
    )
    yield TechniqueSpec(
        name="best-of-noise",
        family="synthesis",
        summary="The best of many random images.",
        impl="timmscope_example.synthesis:BestOfNoise",
    )
    yield TechniqueSpec(
        name="brightness",
        family="attack",
        summary="The smallest change of brightness that fools a model.",
        impl="timmscope_example.attack:Brightness",
    )
    yield TechniqueSpec(
        name="borrowed-gradient",
        family="attack",
        summary="A step along the gradient of another model.",
        impl="timmscope_example.transfer:BorrowedGradient",
    )
    yield TechniqueSpec(
        name="tint",
        family="attack",
        base="universal-attack",
        summary="The colour that fools a model on most images.",
        impl="timmscope_example.universal:Tint",
    )
    yield TechniqueSpec(
        name="shake",
        family="defence",
        summary="A random move by a few pixels.",
        impl="timmscope_example.defence:Shake",
    )
    yield TechniqueSpec(
        name="rounding",
        family="defence",
        base="certification",
        summary="A radius within which all images round to the same pixels.",
        impl="timmscope_example.certification:Rounding",
    )
    yield TechniqueSpec(
        name="histogram-match",
        family="style",
        summary="The style's histogram on the content.",
        impl="timmscope_example.style:HistogramMatch",
    )
    yield TechniqueSpec(
        name="class-distances",
        family="representation",
        summary="How far apart the labels' mean rows are.",
        impl="timmscope_example.representation:ClassDistances",
    )
    yield TechniqueSpec(
        name="mixup",
        family="representation",
        base="training",
        summary="Training on mixtures of images.",
        impl="timmscope_example.training:Mixup",
    )


@hookimpl
def timmscope_collectors() -> Iterator[CollectorSpec]:
    """A collector."""
    yield CollectorSpec(
        name="first-above",
        summary="The first image that drives each unit above a threshold.",
        impl="timmscope_example.collector:FirstAbove",
    )


@hookimpl
def timmscope_model_sources() -> Iterator[ModelSourceSpec]:
    """A scheme of models."""
    yield ModelSourceSpec(
        scheme="colours",
        summary="Models that name the main colour.",
        impl="timmscope_example.models:load",
        example="colours:rgb",
    )


@hookimpl
def timmscope_image_sources() -> Iterator[ImageSourceSpec]:
    """A scheme of images."""
    yield ImageSourceSpec(
        scheme="gradients",
        summary="As many drawn colour gradients as are asked for.",
        impl="timmscope_example.images:Gradients",
        example="gradients:24",
    )


@hookimpl
def timmscope_index_backends() -> Iterator[IndexBackendSpec]:
    """An engine of search."""
    yield IndexBackendSpec(
        name="dictionary",
        summary="Rows in a dictionary, each compared with each.",
        impl="timmscope_example.backend:Dictionary",
    )
