"""Conditions on images are compared with plain Python over a list of dictionaries."""

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.mining.synthetic import write_synthetic
from tests.store.conftest import BAD, COUNT, LABELS, NAMES, Known

from timmscope.store.metadata import read_metadata
from timmscope.store.where import Condition
from timmscope_registry import ParameterError, StoreError

RECORDS = [
    {
        "id": i,
        "path": NAMES[i],
        "name": NAMES[i].split("/")[-1],
        "folder": NAMES[i].rsplit("/", 1)[0],
        "label": LABELS[i] or None,
        "width": None if i in BAD else i,
        "height": None if i in BAD else 2 * i,
        "readable": i not in BAD,
    }
    for i in range(COUNT)
]


def over(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("label == 'class 0'", lambda r: r["label"] == "class 0"),
        ("label != 'class 0'", lambda r: r["label"] != "class 0"),
        ("not label == 'class 0'", lambda r: r["label"] != "class 0"),
        ("label is None", lambda r: r["label"] is None),
        ("label == none", lambda r: r["label"] is None),
        ("label is not None and not (width > 9)", lambda r: r["label"] and not over(r["width"], 9)),
        ("width > 20", lambda r: over(r["width"], 20)),
        ("20 < width", lambda r: over(r["width"], 20)),
        ("not width > 20", lambda r: not over(r["width"], 20)),
        ("width == None", lambda r: r["width"] is None),
        ("10 <= width < height <= 40.5", lambda r: r["readable"] and 10 <= r["id"] <= 20),
        ("height > width and id < 30", lambda r: r["readable"] and 0 < r["id"] < 30),
        ("id in [3, 5, 48, 1000]", lambda r: r["id"] in (3, 5, 48)),
        ("width in (3, 5)", lambda r: r["id"] == 5),
        ("label in ['class 1', None]", lambda r: r["label"] in ("class 1", None)),
        ("label not in {'class 1'}", lambda r: r["label"] != "class 1"),
        ("id in []", lambda r: False),
        ("'1' in name", lambda r: "1" in r["name"]),
        ("'1' not in name", lambda r: "1" not in r["name"]),
        ("'1' in label", lambda r: r["label"] == "class 1"),
        ("'日本' in path", lambda r: r["id"] == 0),
        ("name == '日本.png'", lambda r: r["id"] == 0),
        ("folder == 'né\\nw'", lambda r: r["id"] == 0),
        ("folder == 'dir' and name < '2'", lambda r: r["id"] and r["name"] < "2"),
        ("readable", lambda r: r["readable"]),
        ("readable == False", lambda r: not r["readable"]),
        ("not readable or id == 0x5", lambda r: not r["readable"] or r["id"] == 5),
        ("id == -1 or id > 1e30 or id < -10", lambda r: False),
        ("True", lambda r: True),
        ("2 < 1 or id >= 49", lambda r: r["id"] == 49),
        ("label == 'class 0' and id > 5 or id == 1", lambda r: r["id"] in (1, *range(6, 50, 6))),
        ("id < 99999999999999999999999", lambda r: True),
    ],
)
def test_a_condition_chooses_what_plain_python_chooses(
    known: Known, text: str, plain: Callable[[dict[str, object]], bool]
) -> None:
    images = known.open().images
    chosen = images.where(text)
    assert chosen.dtype == bool
    assert chosen.tolist() == [bool(plain(record)) for record in RECORDS]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("labl == 'a'", "at character 1: there is no column 'labl'; did you mean 'label'"),
        ("label == dog", "at character 10: there is no column 'dog'.*text stands in quotes"),
        ("id > 3 and 'é' == labl", "at character 19: there is no column 'labl'"),
        ("label = 'dog'", "at character 7: one = is not a comparison, write =="),
        ("label == 'dog' and", "ends too early"),
        ("label == 'dog", "at character 10: unterminated string"),
        ("label == 3", "label is text and 3 is a number; text stands in quotes"),
        ("width > 'a'", "width is a number and 'a' is text"),
        ("width", "width is a number: compare it"),
        ("label and readable", "label is text: compare it"),
        ("label.upper() == 'A'", r"'label.upper\(\)' is not understood"),
        ("(label == 'a') & readable", "`and`, `or` instead of & and |"),
        ("__import__('os').remove('x')", "is not understood"),
        ("[x for x in label]", "is not understood"),
        ("id < 10 ** 9", "'10 .. 9' is not understood"),
        ("'a' in width", "`in` takes a list"),
        ("width in 3", "`in` takes a list"),
        ("label in ['a', 3]", "at character 16: label is text, 3 in the list is not"),
        ("label in [dog]", "dog is not a constant"),
        ("id is 3", "`is` is for None"),
        ("label < None", "neither smaller nor larger"),
        ("readable < True", "true or false"),
        ("readable == 1", "readable is true or false and 1 is a number"),
        ("label == 'a\0'", "code 0"),
        ("not " * 5000 + "readable", "nested too deeply"),
        ("lambda: 1", "is not understood"),
        ("None", "None: compare it"),
    ],
    ids=lambda value: value[:20].replace("\0", "0"),
)
def test_an_error_in_a_condition_names_the_character_and_a_fix(
    known: Known, text: str, words: str
) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        known.open().images.where(text)
    assert caught.value.parameter == "where"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_condition_reads_only_the_columns_it_names() -> None:
    assert Condition("a > 1 and not (b == 'x' or a < 0)", {"a": "number", "b": "text"}).columns == (
        "a",
        "b",
    )
    assert Condition("1 < 2", {}).columns == ()


def test_an_unfinished_store_refuses_conditions(write: Callable[..., Known]) -> None:
    with pytest.raises(StoreError, match="not finished"):
        write("half", shards=2).open().images.where("id > 3")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 12_000):
        images = write_synthetic(tmp_path / str(count), count, width=1, clusters=7).images
        images.where("'1' in path and label == 'cluster 1' and width > height")
        gc.collect()
        tracemalloc.start()
        images.where("'1' in path and label == 'cluster 1' and width > height")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 50_000, "more than the mask of one byte per image"


class TestMetadata:
    def test_columns_are_joined_by_path_and_numbers_are_numbers(
        self, known: Known, tmp_path: Path
    ) -> None:
        file = tmp_path / "m.csv"
        rows = ["path,year,shot by,class,note"]
        for i in range(0, COUNT, 2):
            name = f'"{NAMES[i]}"' if i == 0 else NAMES[i]
            rows.append(f"{name},{1990 + i},{'Ann' if i % 4 else ''},c{i},{i if i < 40 else 'x'}")
        rows.append("elsewhere.png,1,2,3,4")
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        images = known.open().with_metadata(file).images
        even = [i % 2 == 0 for i in range(COUNT)]
        assert images.where("year > 1999.5").tolist() == [
            i % 2 == 0 and i > 9 for i in range(COUNT)
        ]
        assert images.where("year == None").tolist() == [not e for e in even]
        assert images.where("shot_by == 'Ann'").tolist() == [i % 4 == 2 for i in range(COUNT)]
        assert images.where("shot_by is None").tolist() == [i % 4 != 2 for i in range(COUNT)]
        assert images.where("class_ == 'c6' and readable and width == 6").nonzero()[0].tolist() == [
            6
        ]
        assert images.where("note == '4' or note == 'x'").nonzero()[0].tolist() == [
            4,
            *range(40, 50, 2),
        ]
        assert images.metadata is not None
        assert (images.metadata.matched, images.metadata.unmatched) == (25, 1)

    def test_rows_are_found_by_name_or_id_in_any_dialect(
        self, known: Known, tmp_path: Path
    ) -> None:
        for text in (
            "name,a\n7.png,1\n9.png,2\n",
            "\ufeffname;a\r\n7.png;1\r\n9.png;2\r\n",
            "a\tNAME\n1\t7.png\n2\t9.png\n",
            "id,a\n7,1\n9,2\n900,3\n",
            'name,a\n"7.png","1"\n\n9.png,2\n',
        ):
            (tmp_path / "m.csv").write_text(text, encoding="utf-8", newline="")
            images = known.open().with_metadata(tmp_path / "m.csv").images
            assert images.where("a >= 1").nonzero()[0].tolist() == [7, 9]
            assert images.where("a == 2").nonzero()[0].tolist() == [9]

    def test_a_label_column_replaces_the_labels_of_the_store_and_is_text(
        self, known: Known, tmp_path: Path
    ) -> None:
        (tmp_path / "m.csv").write_text("id,label,width\n1,07,5\n2,8,5\n")
        store = known.open().with_metadata(tmp_path / "m.csv")
        assert list(store.images.labels)[:4] == [None, "07", "8", None]
        assert store.images.where("label == '07'").nonzero()[0].tolist() == [1]
        assert store.images.where("width == 5").nonzero()[0].tolist() == [5], "the store's own"
        assert known.open().images.labels[0] == LABELS[0]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "cannot be read .No such file"),
            ("", "needs a column path, name or id.*it has none"),
            ("a,b\n1,2\n", "needs a column path, name or id.*it has a, b"),
            ("path,a\n", "no row belongs to an image"),
            ("path,a\n./dir/1.png,1\n", "begins with './dir/1.png', the store's with 'né"),
            ("name,a\n1.png,1\n1.png,2\n", "lines 2 and 3 are both for image 'dir/1.png'"),
            ("name,a\n1.png,1,2\n", "line 2 has 3 values, the first line names 2"),
            ("id,a\n1,2\nx,3\n", "line 3 has the id 'x'"),
            ("id,a,a\n1,2,3\n", "two columns are called 'a'"),
            ("id,,b\n1,2,3\n", "column 2 has no name"),
            ('id,a\n1,"x\n', "line 2 cannot be read"),
        ],
    )
    def test_an_error_in_a_file_names_the_file_and_the_line(
        self, known: Known, tmp_path: Path, text: str | None, words: str
    ) -> None:
        file = tmp_path / "m.csv"
        if text is not None:
            file.write_text(text, encoding="utf-8")
        with pytest.raises(ParameterError, match=words) as caught:
            known.open().with_metadata(file)
        assert str(file) in str(caught.value)
        assert caught.value.parameter == "metadata"

    def test_a_pipe_is_refused_without_waiting_for_it(self, known: Known, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "m.csv")
        with pytest.raises(ParameterError, match="a pipe or a device"):
            known.open().with_metadata(tmp_path / "m.csv")

    def test_a_name_that_two_images_share_is_refused(self, tmp_path: Path) -> None:
        names = ["a/x.png", "b/x.png", "b/y.png"]
        (tmp_path / "m.csv").write_text("name,a\ny.png,1\nx.png,2\n")
        with pytest.raises(ParameterError, match=r"'a/x.png' and 'b/x.png': join on `path`"):
            read_metadata(tmp_path / "m.csv", names)
        (tmp_path / "m.csv").write_text("path,a\nb/x.png,2\n")
        column = read_metadata(tmp_path / "m.csv", names).columns["a"]
        assert np.array_equal(column.values, [np.nan, 2, np.nan], equal_nan=True)
