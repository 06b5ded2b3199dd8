"""`stats`, `search` and `index` work on a store of labelled pictures."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timmscope import Store, VectorIndex, judge_units, load_model, strongest
from timmscope.cli import main

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=64"
COUNT = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two folders of twelve pictures, dark and bright, and one file that is not an image."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        place = folder / ("dark" if number % 2 else "bright")
        place.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (70, 60 + number, 3)) // (4 if number % 2 else 1)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    (folder / "dark" / "bad.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def mined(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mine the pictures once."""
    path = tmp_path_factory.mktemp("mined") / "s.scope"
    words = [
        "mine", MODEL, str(pictures), "-o", str(path), "-l", "layer2", "-l", "global_pool",
        "--shard-size", "8", "--batch-size", "8", "--workers", "0",
    ]  # fmt: skip
    assert main(words) == 0
    return path


@pytest.fixture
def store(mined: Path, tmp_path: Path) -> Path:
    """Return a copy of the mined store that the test may change."""
    shutil.copytree(mined, tmp_path / "s.scope")
    return tmp_path / "s.scope"


def read(outcome: Any) -> Any:
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


class TestStats:
    def test_stats_prints_the_summary_first_and_writes_a_figure(
        self, cli: Cli, store: Path
    ) -> None:
        printed = cli("stats", store, "layer2", "-k", "5")
        assert printed.status == 0, printed.err
        report = judge_units(Store.open(store).layer("layer2"))
        assert printed.out.splitlines()[0] == report.sentence
        assert "with only 24 images, much of this is chance" in printed.out
        with Image.open("timmscope-out/stats-layer2.png") as figure:
            assert figure.width > 1000

    def test_json_and_csv_have_every_unit(self, cli: Cli, store: Path, tmp_path: Path) -> None:
        out = read(cli("stats", store, "layer2", "--csv", tmp_path / "u.csv", "--json"))
        report = judge_units(Store.open(store).layer("layer2"))
        assert out["units"] == report.table()
        assert out["counts"] == report.counts
        assert out["labelled"] == COUNT
        with (tmp_path / "u.csv").open(newline="") as file:
            assert [int(row["unit"]) for row in csv.DictReader(file)] == list(range(128))

    def test_units_are_sorted_by_any_column(self, cli: Cli, store: Path) -> None:
        report = judge_units(Store.open(store).layer("layer2"))
        for flags, expected in (
            (["--sort", "max_q99"], report.ranked("max_q99")),
            (
                ["--sort", "correlation", "--ascending"],
                report.ranked("correlation", ascending=True),
            ),
        ):
            printed = cli("stats", store, "layer2", "-k", "3", *flags).out.splitlines()
            rows = [line.split()[0] for line in printed if line.strip()[:1].isdigit()]
            assert rows == [str(unit) for unit in expected[:3]]

    @pytest.mark.parametrize("columns", ["80", "30"])
    def test_a_narrow_terminal_gets_fewer_columns_and_no_cut_numbers(
        self, cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch, columns: str
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        printed = cli("stats", store, "layer2", "-k", "3", "--sort", "mean_std").out.splitlines()
        heads = next(line.split() for line in printed if line.split()[:1] == ["unit"])
        assert "largest" not in heads
        assert heads[-2:] == ["AUROC", "mean_std"]
        table = judge_units(Store.open(store).layer("layer2")).table()
        rows = [line.split() for line in printed if line.strip()[:1].isdigit()]
        for row in rows:
            assert row[-1] == f"{table[int(row[0])]['mean_std']:.5g}"
            assert row[-2] == f"{table[int(row[0])]['auroc']:.3f}"
        assert len(rows) == 3

    def test_a_condition_on_metadata_selects_the_images(
        self, cli: Cli, store: Path, tmp_path: Path
    ) -> None:
        lines = [f"{number}.png,{number}" for number in range(COUNT)]
        (tmp_path / "m.csv").write_text("name,age\n" + "\n".join(lines) + "\n")
        out = read(
            cli("stats", store, "layer2", "--where", "age < 6 and label == 'dark'",
                "--metadata", tmp_path / "m.csv", "--json")
        )  # fmt: skip
        assert out["images"] == 3
        assert out["where"] == "age < 6 and label == 'dark'"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["layer9"], "no layer 'layer9'; did you mean 'layer2'"),
            (["layer2", "--sort", "meen"], "no column 'meen' of numbers"),
            (["layer2", "--where", "labl == 'a'"], "did you mean 'label'"),
            (["layer2", "--where", "id > 99"], "no image that could be read is chosen"),
            (["layer2", "--metadata", "gone.csv"], "gone.csv: cannot be read"),
            (["layer2", "-k", "0"], "--count is 0"),
        ],
    )
    def test_wrong_input_to_stats_gives_one_line(
        self, cli: Cli, store: Path, arguments: list[str], words: str
    ) -> None:
        outcome = cli("stats", store, *arguments)
        assert outcome.status == 2
        assert words in outcome.err
        assert len(outcome.err.splitlines()) == 1


class TestSearch:
    def test_search_by_row_equals_brute_force_without_the_row_itself(
        self, cli: Cli, store: Path
    ) -> None:
        rows = Store.open(store).layer("layer2").pooled[:].astype(np.float64)
        readable = Store.open(store).images.readable
        for metric in ("cosine", "l2", "ip"):
            if metric == "cosine":
                scores = rows @ rows[4] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[4])
            else:
                scores = (
                    rows @ rows[4] if metric == "ip" else -np.linalg.norm(rows - rows[4], axis=1)
                )
            order = [i for i in np.argsort(-scores, kind="stable") if readable[i] and i != 4][:6]
            out = read(
                cli("search", store, "--row", "4", "-l", "layer2", "-k", "6", "--metric", metric,
                    "--json")
            )  # fmt: skip
            assert [hit["image_id"] for hit in out["nearest"]] == order
            shown = [abs(hit["score"]) for hit in out["nearest"]]
            assert shown == pytest.approx(np.abs(scores[order]), rel=1e-5)
            assert out["metric"] == metric

    def test_search_by_objective_ranks_by_its_value(self, cli: Cli, store: Path) -> None:
        opened = Store.open(store)
        hits = strongest(opened, "layer2[3] - 0.5*layer2[7]", 4, where="label == 'dark'")
        out = read(
            cli("search", store, "--objective", "layer2[3] - 0.5*layer2[7]", "-k", "4", "--where",
                "label == 'dark'", "--json")
        )  # fmt: skip
        assert [hit["image_id"] for hit in out["nearest"]] == hits.ids[0].tolist()
        assert {Path(hit["path"]).parent.name for hit in out["nearest"]} == {"dark"}
        assert not (store / "index").exists(), "an objective needs no index"
        low = cli(
            "search", store, "--objective", "-layer2[3]", "-k", "3", "--where", "-1 < id", "--json"
        )
        lowest = strongest(opened, "-layer2[3]", 3).ids[0].tolist()
        assert [hit["image_id"] for hit in read(low)["nearest"]] == lowest
        logits = read(cli("search", store, "--objective", "class:5", "-k", "1", "--json"))[
            "nearest"
        ]
        model = load_model(MODEL)
        image = opened.source().load(logits[0]["image_id"])
        assert float(model(model.images(image))[0, 5]) == pytest.approx(
            logits[0]["score"], abs=1e-4
        )
        near = read(cli("search", store, "--objective", "layer2[3]", "--metric", "ip", "--json"))
        assert near["layer"] == "layer2"
        exact = strongest(opened, "layer2[3]")
        assert [hit["image_id"] for hit in near["nearest"]] == exact.ids[0].tolist()

    def test_search_by_vector_with_a_condition(self, cli: Cli, store: Path, tmp_path: Path) -> None:
        row = Store.open(store).layer("global_pool").pooled[6]
        np.save(tmp_path / "v.npy", row)
        out = read(cli("search", store, "--vector", tmp_path / "v.npy", "-k", "1", "--json"))
        assert out["nearest"][0]["image_id"] == 6
        some = cli("search", store, "--vector", tmp_path / "v.npy", "--where", "id in [1, 2]")
        assert some.status == 0, some.err
        assert "no more rows with id in [1, 2]" in some.out

    def test_the_metric_of_the_saved_index_is_the_default(self, cli: Cli, store: Path) -> None:
        assert cli("index", "build", store, "layer2", "--metric", "l2").status == 0
        out = read(cli("search", store, "--row", "0", "-l", "layer2", "--json"))
        assert out["metric"] == "l2"

    def test_search_without_the_images_skips_only_the_sheet(
        self, cli: Cli, store: Path, pictures: Path, tmp_path: Path
    ) -> None:
        moved = tmp_path / "moved"
        pictures.rename(moved)
        try:
            outcome = cli("search", store, "--row", "4", "-k", "2", "--json")
            assert json.loads(outcome.out)["sheet"] is None
            assert "no sheet" in outcome.err
            found = read(cli("search", store, "--row", "4", "--images", moved, "--json"))
            assert Path(found["sheet"]).exists()
            assert cli("search", store, "--row", "4", "-o", "x.png").status == 2
            (moved / "bright" / "0.png").rename(tmp_path / "0.png")
            one_less = cli("search", store, "--row", "4", "-k", "24", "--images", moved)
            (tmp_path / "0.png").rename(moved / "bright" / "0.png")
            assert one_less.status == 0, one_less.err
            assert "0.png" in one_less.err
        finally:
            moved.rename(pictures)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "no query is given"),
            (["x.png", "--row", "1"], "IMAGE and --row are given"),
            (["--row", "99"], "has no row 99"),
            (["--row", "4", "--where", "id > 99"], "no row other than 4 with id > 99"),
            (["--row", "4", "--where", "label = 'a'"], "write =="),
            (["--vector", "none.npy"], "none.npy"),
            (["--vector", "text.npy"], "not a .npy file"),
            (["--vector", "square.npy"], "of shape (2, 2), expected one row"),
            (["--vector", "short.npy"], "expected (Q, 512)"),
            (["--objective", "layer2[3,1,1]"], "not a linear function"),
            (["--objective", "layer9[3]"], "no layer 'layer9'"),
            (["--objective", "class:5", "--layer", "layer2"], "not an affine function"),
        ],
    )
    def test_wrong_input_to_search_gives_one_line(
        self, cli: Cli, store: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        (tmp_path / "text.npy").write_text("no numbers")
        np.save(tmp_path / "square.npy", np.ones((2, 2)))
        np.save(tmp_path / "short.npy", np.ones(3))
        outcome = cli("search", store, *arguments)
        assert outcome.status == 2
        assert words in outcome.err
        assert len(outcome.err.splitlines()) == 1


class TestIndex:
    def test_build_remove_compact_tune_and_info(self, cli: Cli, store: Path) -> None:
        built = read(
            cli("index", "build", store, "layer2", "--backend", "hnsw", "--recall", "0.9",
                "--memory", "1G", "--json")
        )  # fmt: skip
        assert (built["count"], built["failed"], built["backend"]) == (COUNT, 1, "timmscope:hnsw")
        gone = read(cli("index", "remove", store, "layer2", "--where", "label == 'dark'", "--json"))
        assert gone["rows_removed"] == 12
        assert gone["facts"]["tombstones"] == 12
        printed = cli("index", "info", store).out
        assert "timmscope index remove" in printed
        assert "--compact" in printed
        ids = sorted(VectorIndex.load(store, "layer2").ids.tolist())
        fewer = read(cli("index", "remove", store, "layer2", "--ids", f"{ids[0]},{ids[2]}-{ids[3]}",
                         "--compact", "--json"))  # fmt: skip
        assert fewer["facts"]["tombstones"] == 0
        assert VectorIndex.load(store, "layer2").ids.tolist() == [ids[1], *ids[4:]]
        assert (
            read(cli("index", "tune", store, "layer2", "--json"))["facts"]["recall"]["reached"] == 1
        )
        hits = read(cli("search", store, "--row", str(ids[1]), "-l", "layer2", "--json"))["nearest"]
        assert {hit["image_id"] for hit in hits} == set(ids[4:])

    def test_missing_rows_are_reported_and_added(
        self, cli: Cli, store: Path, tmp_path: Path
    ) -> None:
        record = store / "index" / "layer2.json"
        assert cli("index", "build", store, "layer2").status == 0
        index = VectorIndex.load(store, "layer2")
        index.remove(np.arange(8))
        shards = {n: digest for n, digest in index.record.shards.items() if n != 0}
        index.record = index.record.model_copy(update={"shards": shards})  # as built before
        index.save()
        printed = cli("index", "info", store)
        assert "8 rows of the store" in printed.out
        assert f"timmscope index add {store} layer2\n" in printed.out
        assert printed.err == ""
        added = read(cli("index", "add", store, "layer2", "--json"))
        assert (added["rows_added"], added["missing_rows"], added["count"]) == (8, 0, COUNT)
        before = record.read_bytes()
        assert read(cli("index", "add", store, "layer2", "--json"))["rows_added"] == 0
        assert record.read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["info", "S"], "has no index"),
            (["info", "S", "layer2"], "there is no index"),
            (["build", "S", "layer9"], "no layer 'layer9'"),
            (["build", "S", "layer2", "--backend", "magic"], "'magic'"),
            (["build", "S", "layer2", "--memory", "2X"], "a size as in 2G"),
            (["remove", "S", "layer2"], "expected --where, --ids or --compact"),
            (["remove", "S", "layer2", "--ids", "3-1"], "--ids: '3-1' is neither"),
            (
                ["remove", "S", "layer2", "--ids", "0-9999999999"],
                "--ids: there is no 9999999999, expected 0 to",
            ),
            (["bild", "S", "layer2"], "bild"),
        ],
    )
    def test_wrong_input_to_index_gives_one_line(
        self, cli: Cli, store: Path, arguments: list[str], words: str
    ) -> None:
        if "--ids" in arguments:
            assert cli("index", "build", store, "layer2").status == 0
        outcome = cli("index", *[store if word == "S" else word for word in arguments])
        assert outcome.status == 2
        assert words in outcome.err
        assert len(outcome.err.splitlines()) == 1
