"""The hooks that a plugin may implement: the whole of the plugin contract.

All are called once per process, when something is first listed or looked up, in the order of
distribution names, and each plugin alone: whatever one raises becomes a `Problem` that
``timmscope doctor`` explains, specs it had yielded before are kept, other plugins do not notice.
They must be quick and must not import torch; the implementation is imported at first use.

A plugin is a module (or any object) named by an entry point of the group ``timmscope.v1``::

    [project.entry-points."timmscope.v1"]
    foo = "timmscope_foo.plugin"

or a single file given to ``timmscope --plugin foo.py``. The examples below are such files.
A package would rather keep implementations in modules of their own, so that listing it is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from timmscope_registry.specs import (
    CollectorSpec,
    ImageSourceSpec,
    IndexBackendSpec,
    ModelSourceSpec,
    TechniqueSpec,
)

PROJECT = "timmscope"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as its implementation of the hook of that name."""


@hookspec
def timmscope_techniques() -> Iterable[TechniqueSpec]:
    """Yield the techniques that the plugin offers.

    Called when techniques are first listed or looked up; gets nothing. The class behind ``impl`` is
    imported at first use: a failure there is a `PluginError` for that technique only. It must be
    a subclass of its family's base (`timmscope.AttributionTechnique` and so on).

    Example::

        import torch
        from timmscope import AttributionTechnique, HookedModel, Objective
        from timmscope_registry import TechniqueSpec, hookimpl

        class Contrast(AttributionTechnique):
            \"\"\"Distance of every pixel from the image's mean colour; looks at no model.\"\"\"

            power: float = 1.0
            \"\"\"Exponent of the distance.\"\"\"

            def attribute(
                self, model: HookedModel, images: torch.Tensor, objective: Objective
            ) -> torch.Tensor:
                return (images - images.mean((2, 3), keepdim=True)).norm(dim=1) ** self.power

        @hookimpl
        def timmscope_techniques():
            yield TechniqueSpec(
                name="contrast",
                family="attribution",
                summary="Distance of every pixel from the mean colour.",
                impl=f"{__name__}:Contrast",
            )
    """
    raise NotImplementedError


@hookspec
def timmscope_collectors() -> Iterable[CollectorSpec]:
    """Yield the collectors that can be fed during a data-set pass.

    Called when collectors are first listed or looked up; gets nothing. The class behind ``impl`` is
    imported when a pass asks for it, before the first image is read: a failure there is
    a `PluginError` and no store is made. It must be a subclass of `timmscope.Collector`.

    Example::

        from timmscope_registry import CollectorSpec, hookimpl

        @hookimpl
        def timmscope_collectors():
            yield CollectorSpec(
                name="extrema-again",
                summary="The built-in extrema under another name.",
                impl="timmscope.collectors:Extrema",
            )
    """
    raise NotImplementedError


@hookspec
def timmscope_model_sources() -> Iterable[ModelSourceSpec]:
    """Yield the schemes that `timmscope.load_model` understands.

    Called when a model is first loaded by name or schemes are listed; gets nothing. The callable
    behind ``impl`` is called with what follows the colon and returns a `timmscope.HookedModel`;
    it raises `ModelError` with one clear line when it cannot. Anything else that it returns is
    a `PluginError`, as is a scheme that several plugins offer: full ids tell them apart.

    Example::

        from timmscope_registry import ModelSourceSpec, hookimpl

        def load(rest: str):
            from timmscope import load_model

            return load_model(f"random:{rest}?seed=0&img_size=64")

        @hookimpl
        def timmscope_model_sources():
            yield ModelSourceSpec(
                scheme="small",
                summary="Random weights at 64 pixels.",
                impl=f"{__name__}:load",
                example="small:vit_tiny_patch16_224",
            )
    """
    raise NotImplementedError


@hookspec
def timmscope_image_sources() -> Iterable[ImageSourceSpec]:
    """Yield the kinds of image collection that mining can read.

    Called when images are first loaded by location or sources are listed; gets nothing. The
    callable behind ``impl`` is called with the location (without its scheme) and returns an image
    source; it raises `ImageError` with one clear line when it cannot. Anything else that it returns
    is a `PluginError`, as is a scheme that several plugins offer: full ids tell them apart.

    Example::

        from timmscope_registry import ImageSourceSpec, hookimpl

        @hookimpl
        def timmscope_image_sources():
            yield ImageSourceSpec(
                scheme="directory",
                summary="A folder of images under another name.",
                impl="timmscope.images:FolderSource",
                example="directory:photos",
            )
    """
    raise NotImplementedError


@hookspec
def timmscope_index_backends() -> Iterable[IndexBackendSpec]:
    """Yield the engines that `timmscope.VectorIndex` can search with.

    Called when an index is first built or loaded or backends are listed; gets nothing. The class
    behind ``impl`` is imported when an index asks for it: a failure there is a `PluginError` and
    leaves indexes on disk as they were.

    Example::

        from timmscope_registry import IndexBackendSpec, hookimpl

        @hookimpl
        def timmscope_index_backends():
            yield IndexBackendSpec(
                name="exact",
                summary="The built-in exhaustive search under another name.",
                impl="timmscope.index.flat:FlatBackend",
            )
    """
    raise NotImplementedError
