"""Collectors are mergeable accumulators that a pass over a data set updates.

Names are imported at first use, because only computing rows needs torch, not reading statistics.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
