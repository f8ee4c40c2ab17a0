"""What evaluate prints: two tables of the rule of the reference, in percent, by hand; and a line for each of several checkpoints."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scenemill.pipelines.experiments.checkpoints import Checkpoint
from scenemill.pipelines.experiments.evaluation import Evaluated
from scenemill.pipelines.reports.score_text import print_evaluated, print_step
from scenemill.schemas.tables import SCORES, table_of

CHECKPOINT = Checkpoint(Path("out/model_epoch_003_step_01200.pth"), 3, 1200)
Numbers = dict[str, tuple[float | None, float | None, float | None]]
PRQ: Numbers = {"all": (0.5, 0.625, 0.8), "things": (0.25, 0.5, 0.5), "stuff": (None, None, None)}
PQ: Numbers = {"all": (0.4, 0.7, 0.6), "things": (0.3, 0.6, 0.5), "stuff": (0.7, 0.8, 0.875)}


def rows(metric: str, rule: str, numbers: Numbers) -> list[dict[str, Any]]:
    """All, things, stuff and two classes with counts of their own."""
    about: dict[str, Any] = {"run": "r", "model": "m", "source": "front3d", "split": "test", "store_version": "v", "origin": "o"}
    about |= {"metric": metric, "rule": rule, "published": False, "created": datetime(2026, 9, 1, tzinfo=UTC)}
    classes = {"chair": (numbers["things"], 1234, 5, 67), "[red]wall[/]\x1b[2J": (numbers["stuff"], 8, 90, 1)}
    groups = [{"group": group, "classes": 11, **_values(values)} for group, values in numbers.items()]
    groups += [{"group": name, "tp": tp, "fp": fp, "fn": fn, **_values(v)} for name, (v, tp, fp, fn) in classes.items()]
    return [{**about, **group} for group in groups]


def _values(values: tuple[float | None, ...]) -> dict[str, float | None]:
    return dict(zip(("quality", "segmentation", "recognition"), values, strict=True))


def evaluated(listed: list[dict[str, Any]], kpi: dict[str, float], *, new: bool = True) -> Evaluated:
    return Evaluated("r", Path("out/tables"), CHECKPOINT, None, kpi, table_of(SCORES, listed), new)


def lines(told: Evaluated, *, volumes: bool, one_line: bool = False) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    (print_step if one_line else print_evaluated)(console, told, volumes=volumes)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    return [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("rule", ["reference", "reference, iso 2"])
def test_stage_2_gets_an_overall_table_and_one_per_class(rule: str) -> None:
    other: Numbers = {**PRQ, "all": (0.99, 0.99, 0.99)}
    listed = rows("prq", rule, PRQ) + rows("prq", "best", other) + rows("pq", "reference", PQ) + rows("pq", "coco", PQ)
    assert lines(evaluated(listed, {"PRQ": 50.0, "RSQ": 62.5, "RRQ": 80.0}), volumes=True) == [
        ["model_epoch_003_step_01200.pth,", "epoch", "3,", "step", "1200"],
        ["group", "PRQ", "RSQ", "RRQ", "classes"],
        ["all", "50.00", "62.50", "80.00", "11"],
        ["things", "25.00", "50.00", "50.00", "11"],
        ["stuff", "–", "–", "–", "11"],
        ["class", "PRQ", "RSQ", "RRQ", "TP", "FP", "FN"],
        ["chair", "25.00", "50.00", "50.00", "1,234", "5", "67"],
        ["[red]wall[/]\\x1b[2J", "–", "–", "–", "8", "90", "1"],
        ["In", "percent,", "rule", *f"{rule};".split(), "run", "r", "in", "out/tables"],
    ]


def test_stage_1_gets_pq_and_depth_aware_pq_and_the_loss() -> None:
    listed = rows("pq", "coco", PRQ) + rows("pq", "reference", PQ)
    for metric, quality in (("dpq_0.5", 0.3), ("dpq_0.25", 0.2), ("dpq_0.1", 0.1), ("dpq_mean", 0.2)):
        listed += rows(metric, "reference", dict.fromkeys(("all", "things", "stuff"), (quality, None, None)))
    assert lines(evaluated(listed, {"test_loss": 12.34567}), volumes=False) == [
        ["model_epoch_003_step_01200.pth,", "epoch", "3,", "step", "1200"],
        ["group", "PQ", "SQ", "RQ", "DPQ", "0.5", "DPQ", "0.25", "DPQ", "0.1", "DPQ", "classes"],
        ["all", "40.00", "70.00", "60.00", "30.00", "20.00", "10.00", "20.00", "11"],
        ["things", "30.00", "60.00", "50.00", "30.00", "20.00", "10.00", "20.00", "11"],
        ["stuff", "70.00", "80.00", "87.50", "30.00", "20.00", "10.00", "20.00", "11"],
        ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"],
        ["chair", "30.00", "60.00", "50.00", "1,234", "5", "67"],
        ["[red]wall[/]\\x1b[2J", "70.00", "80.00", "87.50", "8", "90", "1"],
        ["test_loss", "12.3457"],
        ["In", "percent,", "rule", "reference;", "run", "r", "in", "out/tables"],
    ]


def test_without_volumes_under_all_depths_the_mean_is_left_open() -> None:
    """Where no class has ground truth there is no mean over the limits, and no row of it."""
    told = lines(evaluated(rows("pq", "reference", PQ), {}), volumes=False)
    assert told[2] == ["all", "40.00", "70.00", "60.00", "–", "–", "–", "–", "11"]
    assert ["test_loss"] not in [line[:1] for line in told]


@pytest.mark.parametrize(
    ("volumes", "kpi", "new", "said"),
    [
        (True, {"PRQ": 50.0, "RSQ": 62.5, "RRQ": 80.123}, True, "PRQ 50.00, RSQ 62.50, RRQ 80.12; run r"),
        (False, {"test_dpq_-1.0_epoch": 40.0, "test_loss": 1.5}, True, "PQ 40.00, test_loss 1.50; run r"),
        (False, {"test_dpq_-1.0_epoch": 40.0}, False, "PQ 40.00; run r; in the tables before, not evaluated again"),
    ],
)
def test_one_of_several_is_a_line(volumes: bool, kpi: dict[str, float], new: bool, said: str) -> None:
    told = lines(evaluated(rows("pq", "reference", PQ), kpi, new=new), volumes=volumes, one_line=True)
    assert [" ".join(line) for line in told] == [f"model_epoch_003_step_01200.pth, epoch 3, step 1200: {said}"]
