"""Defines the results that techniques return, and saves, draws and loads them."""

from .csv_text import csv_text
from .loading import load_result
from .result import Provenance, Result, to_json
from .scores import Scores
from .sheet import Sheet
from .sheet_of_results import sheet_of_results
from .table import Table

__all__ = [
    "Provenance",
    "Result",
    "Scores",
    "Sheet",
    "Table",
    "csv_text",
    "load_result",
    "sheet_of_results",
    "to_json",
]
