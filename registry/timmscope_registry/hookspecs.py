"""The hooks that a plugin may implement; together they are the whole plugin contract.

Each hook is called once per process, when something is first listed or looked up. Plugins are
called one by one in the order of distribution names. An exception becomes a `Problem` that
``timmscope doctor`` explains: the specs yielded before it are kept, and other plugins are not
affected. A hook must be quick and must not import torch; the implementation is imported at first
use.

A plugin is a module (or any object) named by an entry point of the group ``timmscope.v1``::

    [project.entry-points."timmscope.v1"]
    foo = "timmscope_foo.plugin"

or a single file given to ``timmscope --plugin foo.py``. The examples below are such files. A
package keeps implementations in separate modules, so that listing it is fast.
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
"""Marks a function as the plugin's implementation of the hook of the same name."""


@hookspec
def timmscope_techniques() -> Iterable[TechniqueSpec]:
    """Yield the techniques that the plugin offers.

    Called without arguments when techniques are first listed or looked up. ``impl`` names a
    subclass of the family's base (`timmscope.AttributionTechnique` and so on), which is imported at
    first use; if that fails, using this technique raises `PluginError`, and others still work.

    Example::

        import torch
        from timmscope import AttributionTechnique, HookedModel, Objective
        from timmscope_registry import TechniqueSpec, hookimpl

        class Contrast(AttributionTechnique):
            \"\"\"Distance of every pixel from the image's mean colour; ignores the model.\"\"\"

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
    """Yield the collectors that a data-set pass can update.

    Called without arguments when collectors are first listed or looked up. ``impl`` names a
    subclass of `timmscope.Collector`, which is imported when a pass uses it, before the first image
    is read; if that fails, the pass raises `PluginError` and creates no store.

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

    Called without arguments when a model is first loaded by name or schemes are first listed.
    ``impl`` names a callable that gets the text after the colon and returns a
    `timmscope.HookedModel`; it raises `ModelError` with a one-line message if it cannot. Another
    return value raises `PluginError`, and so does a scheme that several plugins offer, unless the
    full id is given.

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
    """Yield the kinds of image collection that timmscope can read.

    Called without arguments when images are first opened by location or sources are first listed.
    ``impl`` names a callable that gets the location (without its scheme) and returns a
    `timmscope.ImageSource`; it raises `ImageError` with a one-line message if it cannot. Another
    return value raises `PluginError`, and so does a scheme that several plugins offer, unless the
    full id is given.

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

    Called without arguments when an index is first built or loaded or backends are first listed.
    ``impl`` names a class with the methods of `timmscope.Backend`, which is imported when an index
    uses it; if that fails, the call raises `PluginError` and leaves indexes on disk unchanged.

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
