"""Search: the images of a store nearest to a query, or highest in an objective.

Names are imported when they are first used: an index needs no model, an objective does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
