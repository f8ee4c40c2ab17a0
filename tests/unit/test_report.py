"""The report: its numbers by hand, its page without anything from elsewhere, whatever runs are called."""

import io
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from rich.console import Console

from scenemill.pipelines.reports.charts import bars, curves, histogram
from scenemill.pipelines.reports.report import BINS, RUNS, WORST, Report, report
from scenemill.pipelines.reports.report_page import page, write_html
from scenemill.pipelines.reports.report_text import print_report
from scenemill.pipelines.reports.series import describe
from scenemill.pipelines.tables import append_run, read_table
from scenemill.schemas.errors import NotPublished
from scenemill.schemas.published import PUBLISHED
from scenemill.schemas.tables import COUNTS, DEPTHS, FITS, RENDERS, SCORES, table_of

START = datetime(2026, 9, 1, tzinfo=UTC)
EVIL = "<script>alert(1)</script> <img src=x onerror=alert(2)> \"'&amp; $\\frac{1}{0}$ [red]x[/] \x1b[2J \u202e 日本 </svg></style>"
VOID = {"meta", "br"}


def add_run(folder: Path, run: str, day: int = 0, samples: int = 3, **same: Any) -> None:
    """A run whose sample ``n`` matches n of the ten chairs in it with an IoU of 0.8 each, and one wall that is never found."""
    facts = {"run": run, "store_version": "v", "split": "test", "metric": "prq", "rule": "reference"}
    facts |= {name: value for name, value in same.items() if name in facts}
    counts = []
    for number in range(1, samples + 1):
        found = {"tp": number % 11, "fp": 0, "fn": 10 - number % 11, "iou_sum": 0.8 * (number % 11)}
        counts.append({**facts, "key": f"s/{number}", "class_id": 3, "class_name": same.get("name", "chair"), **found})
        counts.append(
            {**facts, "key": f"s/{number}", "class_id": 10, "class_name": "wall", "tp": 0, "fp": 0, "fn": 1, "iou_sum": 0.0}
        )
        counts.append(
            {**facts, "key": f"s/{number}", "class_id": 2, "class_name": "bed", "tp": 0, "fp": 2, "fn": 0, "iou_sum": 0.0}
        )
    about = {**facts, "model": "m", "source": "front3d", "samples": samples, "published": False, "origin": "test"}
    about |= dict.fromkeys(("training", "settings", "epoch", "step")) | {"created": START + timedelta(days=day)}
    about |= {name: value for name, value in same.items() if name in about}
    values = {"all": (0.31, 0.42, 0.53), "things": (0.6, 0.7, 0.8), "stuff": (0.0, 0.0, 0.0), "bed": (None, None, None)}
    values |= {"all": (same["quality"], 0.42, 0.53)} if "quality" in same else {}
    values |= {"wall": (0.0, 0.0, 0.0), same.get("name", "chair"): (0.6, 0.7, 0.8)}
    scores = [{**about, "group": g, "quality": q, "segmentation": s, "recognition": r} for g, (q, s, r) in values.items()]
    depth = {"run": run, "store_version": "v", "key": "s/1", "split": facts["split"], "pixels": 9, "abs_rel": 0.1, "rmse_m": 0.25}
    depths = [{**depth, "delta_1": 0.9}, {**depth, "key": "s/2", "abs_rel": 0.3, "delta_1": 0.7}]
    append_run(
        folder, run, {"counts": table_of(COUNTS, counts), "scores": table_of(SCORES, scores), "depths": table_of(DEPTHS, depths)}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with two runs on 3D-Front and one with an evil name on Matterport3D; tests must not change them."""
    where = tmp_path_factory.mktemp("report") / "tables"
    add_run(where, "first", samples=12)
    add_run(where, "second", day=1)
    add_run(where, EVIL, day=2, model=EVIL, source="matterport", split=EVIL, rule=EVIL, name=EVIL)
    return where


@pytest.fixture(scope="module")
def told(folder: Path) -> Report:
    return report(folder)


def text_of(told: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(console, told)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Page(HTMLParser):
    """Elements, ids and text of a page; fails on what is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_boards_hold_published_results_first_and_then_ours(told: Report) -> None:
    assert [(board.source, board.metric) for board in told.boards] == [("front3d", "prq"), ("matterport", "prq")]
    front3d = told.boards[0].series
    assert [one.run for one in front3d] == [r.run for r in PUBLISHED if r.source == "front3d"] + ["first", "second"]
    assert front3d[2].groups["all"] == (0.5432, 0.6295, 0.8394)
    assert front3d[-1].groups["things"] == (0.6, 0.7, 0.8)
    assert (front3d[-1].samples, front3d[0].samples) == (3, None)
    assert told.runs == 3


def test_a_run_on_all_samples_has_the_counts_of_every_split(tmp_path: Path, told: Report) -> None:
    """Every row of counts and depths says the split of its own sample, those of scores that all were asked for."""
    add_run(tmp_path / "one", "first", samples=12)
    tables = {name: read_table(tmp_path / "one", name) for name in ("counts", "depths", "scores")}
    ours = tables["scores"].filter(pc.invert(tables["scores"]["published"])).to_pylist()
    splits = {f"s/{number}": ("train", "val")[number % 2] for number in range(1, 13)}
    mixed = {name: [row | {"split": splits[row["key"]]} for row in tables[name].to_pylist()] for name in ("counts", "depths")}
    rows = {name: table_of(schema, mixed[name]) for name, schema in (("counts", COUNTS), ("depths", DEPTHS))}
    append_run(tmp_path / "all", "first", rows | {"scores": table_of(SCORES, [row | {"split": "all"} for row in ours])})
    wanted, seen = report(tmp_path / "one"), report(tmp_path / "all")
    for name in ("worst", "qualities", "matches"):
        assert getattr(seen.studies[0], name) == getattr(wanted.studies[0], name)
    assert [(depth.split, depth.samples, depth.abs_rel) for depth in seen.depths] == [("all", 2, wanted.depths[0].abs_rel)]


def test_a_measure_that_no_run_has_is_on_no_board(tmp_path: Path) -> None:
    add_run(tmp_path, "a", metric="dpq_mean")
    scores = read_table(tmp_path, "scores").to_pylist()
    bare = [row | {"run": "b", "segmentation": None, "recognition": None} for row in scores if row["run"] == "a"]
    append_run(tmp_path / "b", "b", {"counts": COUNTS.empty_table(), "scores": table_of(SCORES, bare)})
    boards = {board.metric: board.places for board in report(tmp_path / "b").boards}
    assert boards == {"prq": (0, 1, 2), "dpq_mean": (0,)}


def test_worst_samples_are_the_hand_counted(told: Report) -> None:
    """Sample n: PRQ of chairs 0.8 n / (n + (10 - n) / 2), of the wall 0, of the bed none, for no bed is there: their mean."""
    study = told.studies[0]
    assert [one.run for one in study.series] == ["second", "first"]
    assert [sample.key for sample in study.worst[0]] == ["s/1", "s/2", "s/3"]
    for number, sample in enumerate(study.worst[0], start=1):
        assert sample.quality == pytest.approx(0.8 * number / (5 + number / 2) / 2, abs=1e-12)
        assert (sample.tp, sample.fp, sample.fn) == (number, 2, 10 - number + 1)
    assert [sample.key for sample in study.worst[1]] == ["s/11", "s/1", "s/12", "s/2", *(f"s/{n}" for n in range(3, 9))]
    assert len(study.worst[1]) == WORST


def test_histograms_count_every_sample_and_match(told: Report) -> None:
    study = told.studies[0]
    qualities = [0.8 * number / (5 + number / 2) / 2 for number in (1, 2, 3)]
    assert study.qualities[0] == tuple(sum(int(q * BINS) == place for q in qualities) for place in range(BINS))
    assert sum(study.qualities[1]) == 12
    assert study.matches[0] == tuple(1 + 2 + 3 if place == int(0.8 * BINS) else 0 for place in range(BINS))


def test_classes_come_in_the_order_of_the_labels(told: Report) -> None:
    assert told.studies[0].classes == ("chair", "wall")
    assert told.studies[1].classes == ("wall", EVIL)


def test_depths_are_means_over_samples(told: Report) -> None:
    assert [depth.run for depth in told.depths] == sorted(("first", "second", EVIL))
    assert told.depths[-1].abs_rel == pytest.approx(0.2)
    assert (told.depths[-1].samples, told.depths[-1].rmse_m) == (2, 0.25)


def test_only_the_newest_runs_are_looked_at_closely(tmp_path: Path) -> None:
    for number in range(RUNS + 2):
        add_run(tmp_path, f"run-{number}", day=number, samples=1)
    study = report(tmp_path).studies[0]
    assert [one.run for one in study.series] == [f"run-{number}" for number in range(RUNS + 1, 1, -1)]
    assert study.older == 2
    assert "Older runs left out: 2" in page(report(tmp_path))


def test_metrics_and_rules_have_boards_and_studies_of_their_own(tmp_path: Path) -> None:
    add_run(tmp_path, "a", rule="best")
    add_run(tmp_path, "b", rule="reference")
    add_run(tmp_path, "c", metric="pq")
    told = report(tmp_path)
    assert [(board.source, board.metric) for board in told.boards] == [("front3d", "prq"), ("front3d", "pq"), ("matterport", "prq")]
    assert [(s.metric, s.rule) for s in told.studies] == [("prq", "reference"), ("prq", "best"), ("pq", "reference")]
    assert "SQ" in text_of(told)


QUALITIES = (0.1, 0.3, 0.5, 0.4, 0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A training whose third checkpoint of five is the best, evaluated out of order, and a run that stands alone."""
    where = tmp_path_factory.mktemp("training")
    for day, number in enumerate((4, 0, 2, 1, 3)):
        place: dict[str, Any] = {"training": f"/data/{EVIL}/train", "settings": "abc", "epoch": number, "step": 1000 * number + 7}
        add_run(where, f"step-{number}", day, quality=QUALITIES[number], **place)
    add_run(where, "alone", 9)
    return report(where)


def test_a_training_does_not_flood_the_leaderboard(trained: Report) -> None:
    ours = [one for one in trained.boards[0].series if not one.published]
    assert [one.run for one in ours] == ["step-4", "step-2", "alone"]
    assert [one.run for one in trained.studies[0].series] == ["alone", "step-2", "step-4"]
    assert {depth.run for depth in trained.depths} == {"step-4", "step-2", "alone"}
    assert trained.runs == 6
    text = "".join(text_of(trained, 200).split())
    assert "step2007(bestof5checkpoints)" in text and "step4007(lastof5checkpoints;3morerunsleftout)" in text


def test_the_text_has_the_curve_with_a_star_at_the_best(trained: Report) -> None:
    text = text_of(trained)
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    lines = [line.split() for line in text.splitlines()]
    start = lines.index(["epoch", "step", "all", "things", "stuff"])
    wanted = [[str(n), str(1000 * n + 7), f"{100 * q:.2f}", "60.00", "0.00"] for n, q in enumerate(QUALITIES)]
    wanted[2][2] = "*50.00"
    wanted[0][3:] = ["*60.00", "*0.00"]  # the first of equals
    assert lines[start + 1 : start + 6] == wanted


@pytest.mark.full
def test_of_many_checkpoints_the_text_shows_some_and_every_best(tmp_path: Path) -> None:
    for number in range(30):
        quality = 0.9 if number == 18 else 0.5
        add_run(tmp_path, f"r-{number}", number, 1, training="t", settings="s", epoch=number, step=number, quality=quality)
    lines = [line.split() for line in text_of(report(tmp_path)).splitlines()]
    start = lines.index(["epoch", "step", "all", "things", "stuff"]) + 1
    shown = [int(line[1]) for line in lines[start : start + 9]]
    assert shown == [0, 4, 8, 12, 17, 18, 21, 25, 29]
    assert lines[start + 9][0] == "30" and lines[start + 5][2] == "*90.00"


def test_the_page_has_the_curve_and_all_its_numbers(trained: Report) -> None:
    parsed = Page(page(trained))
    charts = [attrs for tag, attrs in parsed.elements if tag == "svg"]
    assert len(charts) == 3 * len(trained.studies) + 1
    assert "highest of all: 50.00 at step 2,007" in parsed.text
    assert all(f"{1000 * n + 7:,}{n}" in parsed.text for n in range(5))
    assert parsed.text.count("*50.00") == 1
    assert "<script" not in page(trained)


def test_a_curve_is_drawn_to_scale_and_its_ring_is_at_the_best() -> None:
    drawing = ET.fromstring(curves("c", "alt", [10, 20, 40, 50], [[0.1, 0.5, 0.3, None], [None] * 4], ("step", "PRQ")))
    points = [(float(use.get("x") or 0), float(use.get("y") or 0)) for use in drawing.iter("{http://www.w3.org/2000/svg}use")]
    (x1, y1), (x2, y2), (x3, y3), ring = points[-4:]  # those before are ticks; the second line has no point
    assert (x2 - x1) / (x3 - x1) == pytest.approx(1 / 3, abs=1e-4)
    assert (y1 - y3) / (y1 - y2) == pytest.approx(1 / 2, abs=1e-4)
    assert y2 < y3 < y1 and ring == (x2, y2)


def test_the_text_shows_the_published_layout(told: Report) -> None:
    lines = text_of(told).splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("NvPanoptix3D"))
    assert lines[place + 1].split() == ["54.32", "49.74", "74.90", "62.95", "58.98", "80.80", "83.94", "82.15", "92.00"]
    assert any("second, split test, rule reference, 3" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_no_name_steers_the_terminal(told: Report, width: int) -> None:
    text = text_of(told, width)
    assert "[red]x[/]" in "".join(text.split())
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert max(map(len, text.splitlines())) <= width


def test_tables_without_runs_of_our_own_rows(tmp_path: Path) -> None:
    """A run with an average alone: nothing to count, nothing to draw, and still a report."""
    add_run(tmp_path, "bare")
    rows = table_of(SCORES, [{**row, "run": "empty", "group": "all"} for row in _one_score(tmp_path)])
    append_run(tmp_path / "other", "empty", {"counts": COUNTS.empty_table(), "scores": rows})
    told = report(tmp_path / "other")
    assert (told.studies, told.depths, told.runs) == ((), (), 1)
    assert "Worst samples" not in page(told) + text_of(told)


def _one_score(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_table(folder, "scores").to_pylist() if row["run"] == "bare"][:1]


def test_no_tables(tmp_path: Path) -> None:
    with pytest.raises(NotPublished):
        write_html(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_whole_and_loads_nothing(folder: Path, tmp_path: Path) -> None:
    write_html(folder, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    parsed = Page(html)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    policy = next(attrs["content"] for tag, attrs in parsed.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert {tag for tag, _ in parsed.elements} & {"script", "img", "link", "iframe", "object", "form", "image", "base"} == set()
    assert not re.search(r"@import|url\((?!#)", html)
    names = {name for _, attrs in parsed.elements for name in attrs}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in parsed.elements)
    assert all((attrs.get("xlink:href") or "#").startswith("#") for _, attrs in parsed.elements)


def test_ids_are_unique_and_every_link_has_an_end(told: Report) -> None:
    parsed = Page(page(told))
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    ends = {attrs[name] for _, attrs in parsed.elements for name in ("href", "xlink:href") if attrs.get(name)}
    ends |= set(re.findall(r"url\((#[^)]*)\)", page(told)))
    assert ends and {f"#{id_}" for id_ in ids} >= ends


def test_charts_say_what_they_show(told: Report) -> None:
    charts = [attrs for tag, attrs in Page(page(told)).elements if tag == "svg"]
    assert len(charts) == 3 * len(told.studies)
    assert {attrs["role"] for attrs in charts} == {"img"}
    assert all(attrs["aria-label"] for attrs in charts)


def test_names_are_text_and_nothing_else(told: Report) -> None:
    html = page(told)
    assert "<script>alert(1)</script> <img src=x onerror=alert(2)>" in Page(html).text
    assert "<script" not in html
    assert "\x1b" not in html and "\u202e" not in html


def test_the_page_is_the_same_every_time(told: Report) -> None:
    assert page(told) == page(told)


def test_the_page_shows_the_published_layout(told: Report) -> None:
    text = Page(page(told)).text
    assert "54.3249.7474.9062.9558.9880.8083.9482.1592.00" in text
    assert text.count("published") >= len(PUBLISHED)


def test_drawings_are_well_formed() -> None:
    for drawing in (
        bars("b", 'a "quoted" <alt>', ["x", "y"], [[0.5, None]], "PRQ"),
        histogram("h", "alt", [[0] * 20, [1] * 20], "IoU"),
        curves("c", "alt", [1, 2], [[0.0, 0.0], [None, None]], ("step", "PRQ")),
    ):
        assert ET.fromstring(drawing).get("role") == "img"
    assert ET.fromstring(bars("b", 'a "quoted" <alt>', ["x"], [[1.0]], "PRQ")).get("aria-label") == 'a "quoted" <alt>'


def test_a_series_says_what_must_be_equal_to_compare(told: Report) -> None:
    front3d = told.boards[0].series
    assert describe(front3d[0]) == "published, split test: product documentation of NvPanoptix3D"
    assert describe(front3d[3]) == "published, split not stated: README of chtsy/buol"
    assert describe(front3d[-1]) == "second, split test, rule reference, 3 samples"


def add_fit(folder: Path, run: str, ious: list[float], ssim: float | None) -> None:
    """A fitted mesh that was measured on some views."""
    common: dict[str, Any] = {"run": run, "store_version": "v"}
    views = [
        {**common, "key": f"clock/{n}", "split": "held out", "mask_iou": iou, "psnr_db": 20.0, "ssim": ssim}
        for n, iou in enumerate(ious)
    ]
    row = {**common, "template": "sphere", "settings": "{}", "views": 90, "held_out": len(ious), "epochs": 50, "vertices": 642}
    row |= {"faces": 1280, "loss": 0.03, "seconds": 204.4, "chamfer": 0.01037}
    score = {**common, "model": "toy", "source": "views", "split": "held out", "rule": "held-out views", "group": "all"}
    score |= {"quality": sum(ious) / len(ious), "samples": len(ious), "published": False, "origin": "here"}
    scores = [{**score, "metric": metric, "created": START + timedelta(seconds=n)} for n, metric in enumerate(("mask_iou", "ssim"))]
    tables = {"renders": table_of(RENDERS, views), "fits": table_of(FITS, [row]), "scores": table_of(SCORES, scores)}
    append_run(folder, run, tables)


def test_fitted_meshes_have_a_table_of_their_own_and_are_on_no_board(tmp_path: Path) -> None:
    add_run(tmp_path, "a")
    before = report(tmp_path)
    add_fit(tmp_path, "fit-1", [0.9, 0.8], None)
    told = report(tmp_path)
    (fit,) = told.fits
    assert (fit.run, fit.model, fit.template, fit.views, fit.epochs) == ("fit-1", "toy", "sphere", 90, 50)
    assert fit.mask_iou == pytest.approx(0.85)
    assert (fit.psnr_db, fit.ssim, fit.chamfer) == (20.0, None, 0.01037)
    assert (told.boards, told.studies, told.runs) == (before.boards, before.studies, before.runs + 1)
    stream = io.StringIO()
    print_report(Console(file=stream, width=120), told)
    assert re.search(r"toy +sphere +90 +50 +85\.00 +20\.00 +– +0\.01037 +204", stream.getvalue())
    assert "Fitted meshes" in page(told) and "Fitted meshes" not in page(before)
