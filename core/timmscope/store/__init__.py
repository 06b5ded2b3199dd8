"""Reads and writes stores: the manifest and HDF5 shards that one pass over a data set produces.

Names are imported when they are first used, because only the store's pictures need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
