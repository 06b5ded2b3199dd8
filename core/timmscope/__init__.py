"""A microscope for vision models.

Point it at any timm model and see what it looks for, why it decides, and how it breaks::

    from timmscope import load_model, technique

    model = load_model("pip:efficientnet-lite0")
    cam = technique("grad-cam")()
    cam(model, model.images("cat.jpg"), "class:tiger cat").save("out")

``__init__.pyi`` lists every public name once. A name is imported when it is first used, so that
``import timmscope`` takes a few milliseconds and the command line lists things without torch.
"""

import lazy_loader

_lazy_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from timmscope_registry.versions import __version__

        return __version__
    return _lazy_getattr(name)
