"""Defines the results that techniques return, and saves, draws and loads them."""

from .csv_text import csv_text
from .loading import load_result
from .result import Provenance, Result, to_json
from .scores import Scores
from .sheet import Sheet
from .table import Table

__all__ = [
    "Provenance",
    "Result",
    "Scores",
    "Sheet",
    "Table",
    "csv_text",
    "load_result",
    "to_json",
]
