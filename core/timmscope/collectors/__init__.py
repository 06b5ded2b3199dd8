"""Collectors: mergeable accumulators fed during a pass over a data set.

Names are imported when they are first used: reading statistics needs no torch, making rows does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
