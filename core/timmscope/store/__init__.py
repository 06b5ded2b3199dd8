"""Stores: a manifest and HDF5 shards that one pass over a data set left behind.

Names are imported when they are first used: reading a store needs no torch, its pictures do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
