"""Images from anywhere: decoding that is right for every kind of file, and sources of many."""

from .arrays import ArraySource
from .decode import MAX_PIXELS, array_to_rgb, open_image, to_rgb
from .files import FileSource, FolderSource, ListSource
from .opening import Images, open_images
from .source import ByName, ImageSource, PerProcess
from .tables import LabelTable, StringTable
from .webdataset import WebDatasetSource

__all__ = [
    "MAX_PIXELS",
    "ArraySource",
    "ByName",
    "FileSource",
    "FolderSource",
    "ImageSource",
    "Images",
    "LabelTable",
    "ListSource",
    "PerProcess",
    "StringTable",
    "WebDatasetSource",
    "array_to_rgb",
    "open_image",
    "open_images",
    "to_rgb",
]
