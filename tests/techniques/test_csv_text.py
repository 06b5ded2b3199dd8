"""`csv_text` writes the tables of results."""

from __future__ import annotations

from timmscope import csv_text


def test_csv_is_quoted_where_needed_and_lines_end_as_the_standard_says() -> None:
    rows = [{"name": 'a "b", c', "value": 0.1}, {"name": "d\udcff", "value": None}]
    assert csv_text(rows) == 'name,value\r\n"a ""b"", c",0.1\r\nd\ufffd,\r\n'
    assert csv_text([]) == "\r\n"


def test_text_is_no_formula_and_numbers_stay_numbers() -> None:
    rows = [
        {"@name": "=HYPERLINK(1)", "value": -0.5},
        {"@name": "+1-2", "value": "-3"},
        {"@name": "-x.webp", "value": -2},
        {"@name": "\t=1", "value": "1e-3"},
        {"@name": "a=b", "value": None},
    ]
    assert csv_text(rows) == (
        "'@name,value\r\n'=HYPERLINK(1),-0.5\r\n'+1-2,-3\r\n'-x.webp,-2\r\n'\t=1,1e-3\r\na=b,\r\n"
    )
