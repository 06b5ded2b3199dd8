"""Collectors are mergeable accumulators that a pass over a data set updates.

Names are imported at first use: computing rows needs torch, but reading statistics does not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
