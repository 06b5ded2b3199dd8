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
from .model import store_model
from .pictures import StorePictures
from .rows import RowArray
from .store import ImageTable, Store
from .store_layer import StoreLayer, UnitStatistics
from .top_k import TopEntry

__all__ = [
    "SCHEMA",
    "CollectorRecord",
    "FileRecord",
    "ImageTable",
    "ImagesRecord",
    "LayerRecord",
    "Manifest",
    "ModelRecord",
    "RowArray",
    "ShardRecord",
    "Store",
    "StoreLayer",
    "StorePictures",
    "TopEntry",
    "UnitStatistics",
    "store_model",
]
