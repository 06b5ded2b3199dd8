"""Decodes image files of any kind to RGB, and reads collections of images from many sources."""

from .arrays import ArraySource
from .decode import MAX_PIXELS, array_to_rgb, open_image, to_rgb
from .files import FileSource, FolderSource, ListSource
from .opening import Images, open_images
from .source import ImageSource, PerProcess, SourceByName
from .tables import LabelTable, StringTable
from .webdataset import WebDatasetSource

__all__ = [
    "MAX_PIXELS",
    "ArraySource",
    "FileSource",
    "FolderSource",
    "ImageSource",
    "Images",
    "LabelTable",
    "ListSource",
    "PerProcess",
    "SourceByName",
    "StringTable",
    "WebDatasetSource",
    "array_to_rgb",
    "open_image",
    "open_images",
    "to_rgb",
]
