"""Stores: a manifest and HDF5 shards that one pass over a data set left behind."""

from .manifest import (
    SCHEMA,
    CollectorRecord,
    FileRecord,
    ImagesRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ShardRecord,
)
from .pictures import StorePictures
from .rows import RowArray
from .store import ImageTable, Store
from .store_layer import StoreLayer, UnitStatistics
from .tops import TopEntry
from .verify import Damage, Report, verify

__all__ = [
    "SCHEMA",
    "CollectorRecord",
    "Damage",
    "FileRecord",
    "ImageTable",
    "ImagesRecord",
    "LayerRecord",
    "Manifest",
    "ModelRecord",
    "Report",
    "RowArray",
    "ShardRecord",
    "Store",
    "StoreLayer",
    "StorePictures",
    "TopEntry",
    "UnitStatistics",
    "verify",
]
