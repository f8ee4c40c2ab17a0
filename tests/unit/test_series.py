"""Series, and the checkpoints of one training: what is folded away, what a curve holds, which point is the best."""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenemill.pipelines.reports.series import Series, describe, fold, gather, lineages, starred
from scenemill.schemas.published import GROUPS

START = datetime(2026, 9, 1, tzinfo=UTC)


def series(run: str, quality: float | None, step: int | None = None, **changes: Any) -> Series:
    """A run that stands alone, or at a step of one training; things have half the quality of all."""
    groups = {"all": (quality, 0.5, 0.5), "things": (None if quality is None else quality / 2, None, None)}
    plain = Series(run, "m", "front3d", "test", "v", "prq", "reference", 3, False, "o", START, None, None, None, None, groups)
    placed: dict[str, Any] = (
        {} if step is None else {"training": "/data/out/train", "settings": "abc", "epoch": step // 100, "step": step}
    )
    return replace(plain, **(placed | changes))


def rows_of(listed: Iterable[Series]) -> list[dict[str, Any]]:
    """The rows of the scores table that say the same."""
    return [
        {name: value for name, value in vars(one).items() if name not in ("groups", "note")}
        | {"group": group, "quality": values[0], "segmentation": values[1], "recognition": values[2]}
        for one in listed
        for group, values in one.groups.items()
    ]


def runs(listed: Iterable[Series]) -> list[str]:
    return [one.run for one in listed]


def test_rows_are_gathered_into_the_series_they_came_from() -> None:
    listed = [series("a", 0.1, 100), series("b", 0.2), series("a", 0.3, 100, metric="pq"), series("a", 0.4, 100, split="val")]
    rows = rows_of(listed)
    assert gather(rows) == listed
    assert gather(rows[::2] + rows[1::2]) == listed  # rows of two series may alternate


def test_of_a_training_the_best_and_the_last_stay_and_say_what_is_left_out() -> None:
    listed = [series("a", 0.1, 100), series("b", 0.4, 200), series("alone", 0.2), series("c", 0.3, 300), series("d", None, 400)]
    kept = fold(listed)
    assert runs(kept) == ["b", "alone", "d"]
    assert [one.note for one in kept] == ["best of 4 checkpoints", "", "last of 4 checkpoints; 2 more runs left out"]
    assert describe(kept[0]) == "b, split test, rule reference, 3 samples, epoch 2, step 200 (best of 4 checkpoints)"


def test_the_best_that_is_the_last_stays_alone() -> None:
    kept = fold([series("a", 0.1, 100), series("b", 0.4, 200)])
    assert [(one.run, one.note) for one in kept] == [("b", "best and last of 2 checkpoints; 1 more run left out")]


def test_a_checkpoint_that_was_evaluated_again_counts_once() -> None:
    listed = [series("a", 0.9, 100), series("again", 0.1, 100), series("b", 0.4, 200), series("c", 0.2, 300)]
    assert [(one.run, one.note) for one in fold(listed)] == [
        ("b", "best of 3 checkpoints"),
        ("c", "last of 3 checkpoints; 2 more runs left out"),
    ]
    (lineage,) = lineages(listed)
    assert lineage.curves[0].qualities["all"] == (0.1, 0.4, 0.2)
    assert [(one.run, one.note) for one in fold(listed[:2])] == [("again", "newest of 2 runs of this checkpoint")]
    assert lineages(listed[:2]) == ()


@pytest.mark.parametrize(
    "other",
    [
        {"training": "/data/other/train"},
        {"settings": "def"},
        {"source": "matterport"},
        {"split": "val"},
        {"store_version": "w"},
        {"training": None},
        {"epoch": None, "step": None},
    ],
)
def test_what_differs_in_more_than_its_place_is_no_point_of_the_same_curve(other: dict[str, Any]) -> None:
    listed = [series("a", 0.1, 100), replace(series("b", 0.2, 200), **other)]
    assert fold(listed) == listed
    assert lineages(listed) == ()


def test_metrics_and_rules_have_curves_of_their_own_in_the_order_of_a_report() -> None:
    kinds = [("pq", "coco"), ("dpq_mean", "reference"), ("prq", "best"), ("prq", "reference"), ("pq", "reference")]
    listed = [
        series(str(step), (number + 1) * step / 10_000, step, metric=metric, rule=rule)
        for step in (200, 100)
        for number, (metric, rule) in enumerate(kinds)
        if (metric, step) != ("dpq_mean", 100)
    ]
    (lineage,) = lineages(listed)
    assert (lineage.epochs, lineage.steps, lineage.unit, lineage.places) == ((1, 2), (100, 200), "step", (100, 200))
    assert [(curve.metric, curve.rule) for curve in lineage.curves] == [kinds[3], kinds[2], kinds[4], kinds[0], kinds[1]]
    assert lineage.curves[0].qualities == {"all": (0.04, 0.08), "things": (0.02, 0.04), "stuff": (None, None)}
    assert lineage.curves[-1].qualities["all"] == (None, 0.04)
    assert [one.metric for one in fold(listed)] == [metric for metric, _ in kinds]  # of each kind the step 200 is best and last


def test_the_best_is_the_first_of_the_highest_and_has_the_star() -> None:
    (lineage,) = lineages([series(str(step), quality, step) for step, quality in ((1, 0.0), (2, 0.5), (3, None), (4, 0.5))])
    (curve,) = lineage.curves
    assert [curve.best(group) for group in GROUPS] == [1, 1, None]
    assert [starred(curve, "all", place) for place in range(4)] == ["0.00", "*50.00", "–", "50.00"]
    assert starred(curve, "stuff", 0) == "–"


@pytest.mark.parametrize(("models", "name"), [(("ours", "ours"), "ours in out/train"), (("epoch_1", "epoch_2"), "out/train")])
def test_a_training_is_called_by_its_model_and_folder(models: tuple[str, str], name: str) -> None:
    (lineage,) = lineages([series(model, 0.1, step, model=model) for step, model in enumerate(models)])
    assert (lineage.name, lineage.training) == (name, "/data/out/train")


def test_checkpoints_without_steps_are_counted_in_epochs() -> None:
    (lineage,) = lineages([replace(series("b", 0.2, 700), step=None), replace(series("a", 0.1, 300), step=None)])
    assert (lineage.unit, lineage.places, lineage.steps) == ("epoch", (3, 7), (None, None))
    assert lineage.curves[0].qualities["all"] == (0.1, 0.2)


@st.composite
def evaluations(draw: st.DrawFn) -> list[Series]:
    """Runs of two trainings and some that stand alone, one after the other."""
    quality = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    step = st.none() | st.integers(1, 6)
    drawn = draw(st.lists(st.tuples(quality, step, st.booleans()), max_size=12))
    return [
        series(f"r{number}", q, s, created=START + timedelta(hours=number), **({"settings": "def"} if s and other else {}))
        for number, (q, s, other) in enumerate(drawn)
    ]


def rank(one: Series) -> float:
    quality = one.quality("all")
    return -1.0 if quality is None else quality


@given(evaluations())
def test_folding_loses_neither_best_nor_last_and_every_run_is_shown_or_counted(listed: list[Series]) -> None:
    kept = fold(listed)
    assert [replace(one, note="") for one in kept] == [one for one in listed if one.run in runs(kept)]
    left = sum(int(found[1]) for one in kept if (found := re.search(r"(\d+) more run", one.note)))
    repeated = sum(int(found[1]) - 1 for one in kept if (found := re.search(r"newest of (\d+) runs", one.note)))
    assert len(kept) + left + repeated == len(listed)
    assert {one.run for one in listed if one.step is None} <= set(runs(kept))
    for settings in ("abc", "def"):
        newest = {one.step or 0: one for one in listed if one.settings == settings}
        shown = {one.step or 0: one for one in kept if one.settings == settings}
        assert len(shown) <= 2
        if newest:
            assert runs([shown[max(newest)]]) == runs([newest[max(newest)]])
            assert max(map(rank, shown.values())) == max(map(rank, newest.values()))


@given(evaluations())
def test_curves_hold_the_newest_quality_of_every_step(listed: list[Series]) -> None:
    wanted = []
    for settings in ("abc", "def"):
        steps = {one.step or 0: one.quality("all") for one in listed if one.settings == settings}
        if len(steps) > 1:
            wanted.append((tuple(sorted(steps)), tuple(steps[step] for step in sorted(steps))))
    found = [(one.places, one.curves[0].qualities["all"]) for one in lineages(listed)]
    assert sorted(found, key=str) == sorted(wanted, key=str)
