"""Metric tables in the viewer: runs, the worst samples of a run, and what a sample came to."""

import threading
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from scenemill.pipelines.tables import read_table
from scenemill.schemas.errors import ConfigError, SceneMillError, TransientError
from scenemill.schemas.places import Place
from scenemill.schemas.tables import COUNTS, SCORES

PAGE: Final = 100
"""Rows of an answer."""

_LOG: Final = "scores/_delta_log"


class TablesRoot:
    """A folder of metric tables, as of the last look.

    Args:
        name: what it is called.
        path: the folder, on a disk or in an object store.
    """

    kind: Final = "tables"

    def __init__(self, name: str, path: Place) -> None:
        self.name, self.path = name, path
        self._lock = threading.Lock()
        self._stamp, self._error = "", ""
        self._scores, self._counts = SCORES.empty_table(), COUNTS.empty_table()
        self.look()

    def look(self) -> str:
        """Look for new runs; the answer is another one where there are any."""
        with self._lock:
            try:
                stamp = max((file.name for file in (self.path / _LOG).glob("*.json")), default="")
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._scores, self._counts = read_table(self.path, "scores"), read_table(self.path, "counts")
                    self._error = ""
            except SceneMillError as error:
                self._stamp = "" if isinstance(error, TransientError) else self._stamp  # tried again at the next look
                self._error = str(error)
            return f"{self._stamp} {self._error}"

    def describe(self) -> dict[str, Any]:
        """The runs, newest first, as JSON takes it."""
        ours = self._scores.filter(pc.and_(pc.invert(self._scores["published"]), pc.equal(self._scores["group"], "all")))
        columns = ["run", "model", "source", "split", "metric", "rule", "quality", "samples", "epoch", "step"]
        rows = ours.sort_by([("created", "descending"), ("metric", "descending"), ("rule", "descending")]).select(columns)
        return {"runs": _to_json(rows), "error": self._error}

    def worst(self, run: str, metric: str, rule: str, start: int) -> dict[str, Any]:
        """A page of the samples of a run, those of the lowest quality first: key, quality, tp, fp, fn.

        The quality of a sample is the mean over the classes that are truly there.

        Raises:
            ConfigError: no such run, metric and rule.
        """
        wanted = {"run": run, "metric": metric, "rule": rule}
        rows = _where(self._counts, wanted)
        if not rows.num_rows:
            raise ConfigError(f"no samples of run {run[:80]!r} by {metric[:40]!r}, {rule[:40]!r}; published results have none")
        rows = rows.append_column("quality", _quality(rows))
        rows = rows.filter(pc.greater(pc.add(rows["tp"], rows["fn"]), 0))
        summed = rows.group_by("key").aggregate([("quality", "mean"), ("tp", "sum"), ("fp", "sum"), ("fn", "sum")])
        summed = summed.rename_columns(["key", "quality", "tp", "fp", "fn"]).sort_by(
            [("quality", "ascending"), ("key", "ascending")]
        )
        return {"total": summed.num_rows, "start": start, "rows": _to_json(summed.slice(start, PAGE))}

    def sample(self, key: str) -> list[dict[str, Any]]:
        """What every run came to on a sample: a row per run, metric, rule and class."""
        rows = _where(self._counts, {"key": key})
        columns = ["run", "metric", "rule", "class_id", "class_name", "quality", "tp", "fp", "fn"]
        rows = rows.append_column("quality", _quality(rows))
        order = [("run", "ascending"), ("metric", "descending"), ("rule", "descending"), ("class_id", "ascending")]
        return _to_json(rows.sort_by(order).select(columns))


def _to_json(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON takes them: null for numbers that it does not have, as damaged or strange tables hold them."""
    for place, column in enumerate(rows.schema):
        if pa.types.is_floating(column.type):
            values = rows[column.name]
            known = pc.if_else(pc.is_finite(values), values, pa.scalar(None, column.type))
            rows = rows.set_column(place, column.with_nullable(True), known)
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def _where(rows: pa.Table, wanted: dict[str, str]) -> pa.Table:
    for column, value in wanted.items():
        rows = rows.filter(pc.equal(rows[column], value))
    return rows


def _quality(rows: pa.Table) -> pa.ChunkedArray:
    """IoU of the matched over the matched and half of the unmatched segments; 0 where there is none of any."""
    matched, unmatched = (counts.cast(pa.float64(), safe=False) for counts in (rows["tp"], pc.add(rows["fp"], rows["fn"])))
    return pc.divide(rows["iou_sum"], pc.max_element_wise(pc.add(matched, pc.multiply(unmatched, 0.5)), 0.5))
