"""`csv_text` writes the tables of results."""

from __future__ import annotations

from timmscope import csv_text


def test_csv_is_quoted_where_needed_and_lines_end_as_the_standard_says() -> None:
    rows = [{"name": 'a "b", c', "value": 0.1}, {"name": "d\udcff", "value": None}]
    assert csv_text(rows) == 'name,value\r\n"a ""b"", c",0.1\r\nd\ufffd,\r\n'
    assert csv_text([]) == "\r\n"
