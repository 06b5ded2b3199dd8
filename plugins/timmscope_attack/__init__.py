"""The attack techniques of timmscope: small changes of an image that make a model err.

A class is imported when it is first used, so that listing the techniques needs no torch. The names
are in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
