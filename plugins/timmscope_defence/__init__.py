"""The defence techniques of timmscope: what makes a model robust, and proofs of how robust it is.

A class is imported when it is first used, so that listing the techniques needs no torch. The names
are in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
