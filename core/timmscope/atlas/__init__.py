"""Makes atlases: each unit of a layer, its synthesised image beside the patches that excite it."""

from .files import atlas_folder
from .making import make_atlas
from .opening import open_atlas
from .result import Atlas

__all__ = ["Atlas", "atlas_folder", "make_atlas", "open_atlas"]
