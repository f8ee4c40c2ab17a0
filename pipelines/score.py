"""Predictions on disk against a store: metric rows, added to the tables once per run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from scenemill.pipelines.experiments.checkpoints import Checkpoint
from scenemill.pipelines.predictions import Prediction, folder_of, read_prediction
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.tables import append_run
from scenemill.schemas.errors import ConfigError, Corrupt, SourceError
from scenemill.schemas.labels import BUILT_IN, LabelMap
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import COUNTS, DEPTHS, SCORES, table_of
from scenemill.trainers.instances import learned_classes
from scenemill.trainers.metrics import PUBLISHED, STUFF, Average, SurfaceRule, Tally, form_of, panoptic_reconstruction_quality
from scenemill.trainers.panoptic import PixelRule, pq_averages, score_image
from scenemill.trainers.segments import segments_from_labels, segments_from_panoptic
from scenemill.trainers.selfcheck import run_selfcheck
from scenemill.transforms.publish import disk_of, remove
from scenemill.transforms.store import Store, open_store

SCORING: Final = "2"
"""Raised whenever scoring may give other numbers: runs are then scored anew."""

_GROUP: Final = 8
_DEPTH_RANGE_M: Final = (0.4, 6.0)

Tallies = dict[tuple[str, str], Tally]
"""(metric, rule) -> counts."""


@dataclass(frozen=True)
class ScoreConfig:
    """One scoring.

    Attributes:
        predictions: folder of the predictions.
        store: the store with the truth; its version is part of every row.
        tables: folder of the metric tables.
        run: name of the run; "" for one made from what decides the numbers, so that the same scoring is the same run.
        model: what to call the model in reports.
        split: which samples; "" for all.
        version: of the store; "" for the newest.
        allow_missing: True to score what has a prediction and leave out the rest.
        workers: processes.
        labels: what the model learned of the store's classes; predictions name those that it learned.
        surface: which voxels the 3D metric compares; None for those of the published numbers. Others are part of the rule's name.
        checkpoint: what made the predictions, for curves over a training; None where that is not known.
        settings: tells apart runs of one checkpoint under other settings; see ``SCORES``. Goes with ``checkpoint``.
    """

    predictions: Path
    store: Place
    tables: Place
    run: str = ""
    model: str = "model"
    split: str = ""
    version: str = ""
    allow_missing: bool = False
    workers: int = 1
    labels: LabelMap = BUILT_IN
    surface: SurfaceRule | None = None
    checkpoint: Checkpoint | None = None
    settings: str = ""


@dataclass(frozen=True)
class Scored:
    """What a scoring came to.

    Attributes:
        run: its name.
        samples, missing: scored, and left out for want of a prediction.
        scores: its rows of the scores table.
    """

    run: str
    samples: int
    missing: int
    scores: pa.Table


def score(config: ScoreConfig, on_progress: OnProgress = no_progress) -> Scored:
    """Score predictions and add the rows to the tables, once per run; a broken-off run goes on where it stopped.

    Raises:
        ConfigError: no predictions, some are missing, or the tables are another form.
        SourceError: a prediction cannot be read: what is wrong with it, and which.
        Corrupt: the metrics of this installation fail their own cases.
    """
    from scenemill.pipelines.runners.groups import run_groups  # loads Beam

    check_metrics()
    store = open_store(config.store, config.version or None)
    keys = store.keys_of(config.split) if config.split else store.keys
    if len({folder_of(key) for key in keys}) < len(keys):
        raise ConfigError(f"store {store.root}: two keys of one prediction folder (SCENE_IMAGE); score them split by split")
    there = [key for key in keys if (config.predictions / folder_of(key) / "segments.json").is_file()]
    missing = len(keys) - len(there)
    if not there or (missing and not config.allow_missing):
        raise ConfigError(
            f"{missing} of {len(keys)} samples have no prediction under {config.predictions}; expected SCENE_IMAGE/segments.json each"
            + (": --allow-missing scores the others" if there else "")
        )
    decided = _run_name(config, store, there)
    run = config.run or decided
    groups = [there[start : start + _GROUP] for start in range(0, len(there), _GROUP)]
    work = disk_of(config.tables) / ".work" / hashlib.sha256(f"{run} {decided}".encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    function = partial(score_group, replace(config, run=run, version=store.version))
    results = list(
        run_groups(
            "Score samples", function, groups, work, config.workers, lambda n: on_progress("Scoring", n, len(groups)), resume=True
        )
    )
    counts = pa.concat_tables([COUNTS.empty_table(), *(tables[0].cast(COUNTS) for tables in results)]).sort_by("key")
    depths = pa.concat_tables([DEPTHS.empty_table(), *(tables[1].cast(DEPTHS) for tables in results)]).sort_by("key")
    scores = summarize(counts, config, store, run, len(there))
    append_run(config.tables, run, {"counts": counts, "depths": depths, "scores": scores})
    remove(work)
    return Scored(run, len(there), missing, scores)


def check_metrics() -> None:
    """Run the cases whose answer is arithmetic.

    Raises:
        Corrupt: one does not hold.
    """
    for case in run_selfcheck():
        if not case.holds:
            raise Corrupt(
                f"selfcheck {case.name!r}: {case.observed}, expected {case.expected}; do not trust this installation's numbers"
            )


def _run_name(config: ScoreConfig, store: Store, keys: Sequence[str]) -> str:
    """A name made from what decides the numbers."""
    learned = "" if config.labels == BUILT_IN else f" {config.labels}"
    surface = _name_surface(config.surface, store.layout.source)
    digest = hashlib.sha256(f"{SCORING} {store.version} {config.split} {config.model}{learned}{surface}".encode())
    for key in keys:
        for path in sorted((config.predictions / folder_of(key)).iterdir()):
            status = path.stat()
            digest.update(f"{key} {path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return f"{config.model}-{digest.hexdigest()[:12]}"


def _name_surface(surface: SurfaceRule | None, source: str) -> str:
    """What a rule's name ends with: nothing where the published numbers were counted so too."""
    return "" if surface in (None, PUBLISHED[form_of(source)]) else f", {surface}"


def score_group(config: ScoreConfig, keys: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Score some samples: rows of the counts table, and of the depths table.

    Raises:
        SourceError: a prediction cannot be read.
    """
    store = open_store(config.store, config.version)
    counts: list[dict[str, Any]] = []
    depths: list[dict[str, Any]] = []
    for key in keys:
        common = {"run": config.run, "store_version": store.version, "key": key, "split": config.split or store.facts(key)["split"]}
        tallies, errors = score_sample(store, key, config.predictions, config.labels, config.surface)
        counts.extend({**common, **row} for row in count_rows(tallies, config.labels))
        if errors is not None:
            depths.append({**common, **errors, "pixels": int(errors["pixels"])})
    return table_of(COUNTS, counts), table_of(DEPTHS, depths)


def score_sample(
    store: Store, key: str, predictions: Path, labels: LabelMap = BUILT_IN, surface: SurfaceRule | None = None
) -> tuple[Tallies, dict[str, float] | None]:
    """Score one sample; see ``ScoreConfig`` for labels and surface.

    Raises:
        SourceError: its prediction cannot be read.
    """
    source = store.layout.source
    store.layout.check_built_in_classes(str(store.root))
    try:
        prediction = read_prediction(predictions, key, store.layout.grid)
    except SourceError as error:
        raise SourceError(error.check, f"prediction {folder_of(key)}: {error.observed}", error.expected) from error
    wanted = ["semantic_2d", "instance_2d", "depth"]
    if prediction.panoptic_3d is not None:
        wanted += ["geometry", "semantic_3d", "instance_3d", *(["outside"] if store.frustum is None else [])]
    sample = store.read(key, wanted)
    tallies, errors = _score_image(sample, prediction, source, labels)
    if prediction.panoptic_3d is not None:
        tallies.update(_score_volume(sample, prediction, store, labels, surface))
    return tallies, errors


def _score_image(sample: Sample, prediction: Prediction, source: str, labels: LabelMap) -> tuple[Tallies, dict[str, float] | None]:
    semantic, depth = learned_classes(sample["semantic_2d"], labels), sample["depth"]
    if form_of(source) == "matterport":
        depth = np.where((depth < _DEPTH_RANGE_M[0]) | (depth > _DEPTH_RANGE_M[1]), 0, depth)
    segments, told = (_resize(array, semantic.shape) for array in (prediction.panoptic_2d, prediction.depth))
    return score_image(semantic, sample["instance_2d"], depth, segments, prediction.classes_2d, told, source, labels)


def _resize(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Nearest neighbour: a pixel of the result takes the pixel under its centre."""
    rows, columns = (
        np.minimum((np.arange(size) + 0.5) * given / size, given - 1).astype(np.intp)
        for size, given in zip(shape, array.shape, strict=True)
    )
    resized: np.ndarray[Any, Any] = array[rows[:, None], columns]
    return resized


def _score_volume(sample: Sample, prediction: Prediction, store: Store, labels: LabelMap, surface: SurfaceRule | None) -> Tallies:
    source = store.layout.source
    semantic = learned_classes(sample["semantic_3d"], labels)
    true = segments_from_labels(semantic, sample["instance_3d"], labels.stuff(STUFF[form_of(source)]))
    predicted = segments_from_panoptic(prediction.panoptic_3d, prediction.classes_3d or {})
    frustum = store.frustum if store.frustum is not None else ~sample["outside"]
    tallies = panoptic_reconstruction_quality(
        true, sample["geometry"], predicted, prediction.distance, frustum, source, surface=surface
    )
    return {("prq", rule + _name_surface(surface, source)): tally for rule, tally in tallies.items()}


def count_rows(tallies: Mapping[tuple[str, str], Tally], labels: LabelMap = BUILT_IN) -> list[dict[str, Any]]:
    """A row per metric, rule and class with a segment."""
    names = _names(labels)
    return [
        {
            "metric": metric,
            "rule": rule,
            "class_id": label,
            "class_name": names.get(label, str(label)),
            "tp": tally[label].tp,
            "fp": tally[label].fp,
            "fn": tally[label].fn,
            "iou_sum": tally[label].iou_sum,
        }
        for (metric, rule), tally in tallies.items()
        for label in tally.classes
    ]


def _names(labels: LabelMap) -> dict[int, str]:
    return {label.id: label.name for label in labels.labels}


def tallies_of(counts: pa.Table) -> Tallies:
    """Counts rows added up; exact, since every sum of IoU is a whole number of 2**-40."""
    tallies: Tallies = {}
    for row in counts.select(["metric", "rule", "class_id", "tp", "fp", "fn", "iou_sum"]).to_pylist():
        tally = tallies.setdefault((row["metric"], row["rule"]), Tally())
        tally.add(row["class_id"], tp=row["tp"], fp=row["fp"], fn=row["fn"], iou=round(row["iou_sum"] * (1 << 40)))
    return tallies


def summarize(counts: pa.Table, config: ScoreConfig, store: Store, run: str, samples: int) -> pa.Table:
    """Rows of the scores table: All, Things, Stuff and every class, per metric and rule."""
    source = store.layout.source
    common = {
        "run": run,
        "model": config.model,
        "source": source,
        "split": config.split or "all",
        "store_version": store.version,
        "samples": samples,
        "published": False,
        "origin": str(config.predictions),
        "created": datetime.now(UTC),
        **(_point(config.checkpoint, config.settings) if config.checkpoint else {}),
    }
    rows: list[dict[str, Any]] = []
    names = _names(config.labels)
    for (metric, rule), tally in sorted(tallies_of(counts).items()):
        for group, average in averages(metric, rule, tally, source, config.labels).items():
            means = {"quality": average.quality, "segmentation": average.segmentation, "recognition": average.recognition}
            rows.append({**common, "metric": metric, "rule": rule, "group": group, "classes": average.classes, **means})
        for label in tally.classes:
            held = tally[label]
            values = {"quality": held.quality, "segmentation": held.segmentation, "recognition": held.recognition}
            sums = {"tp": held.tp, "fp": held.fp, "fn": held.fn, "iou_sum": held.iou_sum, "classes": 1}
            rows.append({**common, "metric": metric, "rule": rule, "group": names.get(label, str(label)), **values, **sums})
    rows.extend({**common, **row} for row in _mean_over_limits(rows))
    return table_of(SCORES, rows)


def _point(checkpoint: Checkpoint, settings: str) -> dict[str, Any]:
    """Where the numbers stand on the curve of a training."""
    place = {"epoch": checkpoint.epoch, "step": checkpoint.step}
    return {"origin": str(checkpoint.path), "training": checkpoint.training, "settings": settings, **place}


def _mean_over_limits(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Depth-aware PQ as the references sum it up: the mean over the three depth limits, for every average."""
    held: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"].startswith("dpq_") and row["group"] in ("all", "things", "stuff") and row["quality"] is not None:
            held.setdefault(row["group"], []).append(row["quality"])
    return [
        {"metric": "dpq_mean", "rule": "reference", "group": group, "quality": float(np.mean(values))}
        for group, values in held.items()
    ]


def averages(metric: str, rule: str, tally: Tally, source: str, labels: LabelMap = BUILT_IN) -> dict[str, Average]:
    """All, things and stuff, as the metric averages them."""
    if metric == "prq":
        groups = {"all": None, "things": labels.things(), "stuff": labels.stuff(STUFF[form_of(source)])}
        return {name: tally.average(classes) for name, classes in groups.items()}
    pixel_rule: PixelRule = "coco" if rule == "coco" else "reference"
    return pq_averages(tally, pixel_rule, labels)
