"""Is the whole data set true? Great Expectations over the samples table, a suite per source.

What a check of one sample cannot see is judged here: keys, rows and files that occur twice, scenes in two splits, views of another
size, and shares, means and medians that are off although every sample passed. Great Expectations is imported when first needed (it
takes two seconds), sends nothing, and writes nothing outside the folder it is given.
"""

import html
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import FRONT3D_FORM, VIEWS, fields_of
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.tables import SAMPLES
from scenemill.validators.checks import FAR_M, NEAR_M, TRUNCATION
from scenemill.validators.derived import facts_of
from scenemill.validators.pages import offline

DOCS_INDEX: Final = "docs/index.html"
"""Where the first page of the data docs is, below the folder given to ``expect``; ``docs/expectations.html`` is the second."""

RESULT_FILE: Final = "validation.json"
"""Where the result is, as Great Expectations writes it in JSON."""

Weight = Literal["critical", "warning"]

_KEYS_TOLD: Final = 3
_MEASURED_VIEWS: Final = 27  # the released views that the bounds below were measured on; shares of fewer rows say nothing


@dataclass(frozen=True)
class FailedExpectation:
    """One expectation that the table does not meet.

    Attributes:
        severity: "critical" stops a publication; "warning" is only told.
        column: of the samples table, or derived from it; "" for the whole table.
        what: expected and observed, in words, with up to three sample keys.
    """

    severity: Weight
    column: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.column or 'table'}: {self.what}"


@dataclass(frozen=True)
class Expected:
    """How a table met its suite.

    Attributes:
        expectations: how many were judged.
        met: how many hold.
        failed: the others, critical ones first.
    """

    expectations: int
    met: int
    failed: tuple[FailedExpectation, ...]

    @property
    def blocks(self) -> bool:
        """True when a critical expectation failed."""
        return any(failed.severity == "critical" for failed in self.failed)


@dataclass(frozen=True)
class Expectation:
    """A row of a suite.

    Attributes:
        severity: what it means when it fails.
        kind: name of the Great Expectations class.
        column: it speaks of; "" for the whole table.
        why: where its numbers come from.
        settings: arguments of the class.
    """

    severity: Weight
    kind: str
    column: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _values(severity: Weight, column: str, low: float | None, high: float | None, why: str, **settings: Any) -> Expectation:
    return Expectation(severity, "ExpectColumnValuesToBeBetween", column, why, {"min_value": low, "max_value": high, **settings})


def _mean(column: str, low: float | None, high: float | None, why: str) -> Expectation:
    return Expectation("warning", "ExpectColumnMeanToBeBetween", column, why, {"min_value": low, "max_value": high})


_JUDGED_FACTS: Final = tuple(
    column.name
    for column in SAMPLES
    if (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) and column.name not in ("row", "stored_byte")
)

_ANY_TABLE: Final = (Expectation("critical", "ExpectTableRowCountToBeBetween", "", "a data set has samples", {"min_value": 1}),)

_ANY_SOURCE: Final = (
    *_ANY_TABLE,
    *(Expectation("critical", "ExpectColumnValuesToNotBeNull", name, "NaN would pass every bound") for name in _JUDGED_FACTS),
    Expectation("critical", "ExpectColumnValuesToBeUnique", "key", "a key names one view"),
    Expectation("critical", "ExpectColumnValuesToMatchRegex", "key", "scene/image", {"regex": r"^[^/]+/[^/]+$"}),
    Expectation("critical", "ExpectColumnValuesToMatchRegex", "digest", "SHA-256", {"regex": "^[0-9a-f]{64}$"}),
    Expectation("warning", "ExpectColumnValuesToBeUnique", "digest", "two keys, the same raw files: a copy"),
    _values("warning", "splits_of_digest", None, 1, "no view in two splits"),
    _values("critical", "raw_byte", 1, None, "raw files hold something"),
)

_ROOMS: Final = (
    _values("warning", "splits_of_scene", None, 1, "no scene in two splits: the released lists share none"),
    _values("critical", "depth_min_m", 0, None, "0 is invalid and not counted", strict_min=True),
    _values("critical", "depth_valid_share", 0, 1, "a share, and a view with no depth is rejected", strict_min=True),
    _values("critical", "voxels_observed", 1, None, "a volume with nothing in it is rejected"),
    _values("critical", "voxels_labelled", 1, None, "a volume without labels is rejected"),
    _values("critical", "classes_2d_max", 0, len(LABELS) - 1, "the label list"),
    _values("critical", "classes_3d_max", 1, len(LABELS) - 1, "the label list"),
    _values("critical", "labels_agree_share", 0, 1, "a share"),
)

_VIEWS: Final = (
    _values("critical", "grid", 0, 0, "views of an object have no volumes"),
    _values("critical", "pose_error", 0, 2e-4, "orthonormal, determinant 1"),
    _values("critical", "depth_valid_share", 0, 1, "a share"),
    _values("warning", "views_of_camera", None, 1, "two views of one object from the same camera teach nothing new: remove one"),
    _values("warning", "things_2d", 1, None, "a view without a map of labels has no silhouette", mostly=0.99),
)

_STORED: Final = (
    Expectation("critical", "ExpectColumnValuesToBeUnique", "row", "two samples in one row overwrite each other"),
    _values("critical", "row", 0, None, "an index on the sample axis"),
    Expectation("critical", "ExpectColumnValueLengthsToBeBetween", "split", "every sample comes from a list", {"min_value": 1}),
    Expectation("critical", "ExpectColumnValueLengthsToBeBetween", "part", "every sample lies in a part", {"min_value": 1}),
    _values("critical", "stored_byte", 1, None, "every field of a sample takes room"),
    _values("critical", "geometry_error_max_voxel", 0, 2.0**-8, "half a step of float16 between 8 and 16, the coarsest precision"),
)

_FRONT3D: Final = (
    _values(
        "critical", "geometry_min_voxel", 0, 1, "unsigned, labels stop at 1; 5e-7 to 2.2e-3 in released views", strict_max=True
    ),
    _values("critical", "geometry_max_voxel", TRUNCATION, TRUNCATION, "the fill value; exact in all released views"),
    _values("critical", "occupied_not_labelled", 0, 0, "labels where the distance is below 1; exact in released views"),
    _values("critical", "depth_on_surface_share", 0.998, 1, "0 exceptions in 2 052 973 pixels of released views", mostly=0.99),
    _values("critical", "pose_error", 0, 2e-4, "orthonormal, determinant 1; 2.2e-7 in released views"),
    _values("warning", "labels_agree_share", 0.97, 1, "98.96 % to 99.93 % in released views", mostly=0.95),
    _values("warning", "depth_min_m", NEAR_M, None, "the frustum begins there; 0.785 m in released views", mostly=0.99),
    _values("warning", "depth_max_m", None, FAR_M, "the frustum ends there; 4.155 m in released views", mostly=0.99),
    _values("warning", "depth_valid_share", 1, 1, "no invalid pixel in released views", mostly=0.95),
    _values("warning", "things_not_in_3d", None, 0, "every thing of the image is in the volume of all released views", mostly=0.95),
    _values("warning", "things_2d", 1, None, "in 17 of 17 views examined: not below 80 % at 95 % confidence", mostly=0.8),
)

_FRONT3D_ONLY: Final = (_values("warning", "camera_height_m", 0.74, 0.76, "0.75 m in all released poses", mostly=0.95),)

_MATTERPORT: Final = (
    _values("critical", "geometry_min_voxel", -TRUNCATION, -TRUNCATION, "the fill value"),
    _values("critical", "geometry_max_voxel", -TRUNCATION, TRUNCATION, "the truncation", strict_min=True),
    _values("critical", "depth_max_m", None, 65535 / 4000, "the most that 16 bits of 1/4000 m hold"),
    _values("warning", "depth_on_surface_share", 0.5, 1, "re-rendered depth lies on the surface; sensor depth: 39 %", mostly=0.95),
    _values("warning", "things_2d", 1, None, "10 in the released view", mostly=0.8),
)

_FRONT3D_SHARES: Final = (
    _mean("shows_wall", 0.87, 1, "in 27 of 27 released views: not below 87 % at 95 % confidence"),
    _mean("shows_floor", 0.8, 1, "in 17 of 17 views examined: not below 80 % at 95 % confidence"),
    _mean("warned", None, 0.19, "1 of 27 released views: not above 19 % at 95 % confidence"),
    Expectation(
        "warning",
        "ExpectColumnMedianToBeBetween",
        "depth_max_m",
        "released views see 2.7 m to 4.2 m far; beyond the frustum the unit is another",
        {"min_value": 1.0, "max_value": FAR_M},
    ),
)

_MATTERPORT_SHARES: Final = (
    _mean("depth_valid_share", 0.5, 1, "95 % of the released view's pixels are valid"),
    _mean("labels_agree_share", 0.9, 1, "91 % in the released view, whose depth is the worse, from the sensor"),
)


def suite_of(source: str, samples: pa.Table, own_labels: Sequence[Label] | None = None) -> tuple[Expectation, ...]:
    """What is expected of a table of samples.

    Args:
        source: of the samples.
        samples: the table.
        own_labels: the classes of a source of one's own; None for a built-in source.

    Rows, splits and parts are judged once a sample is in a store; shares and means from as many rows on as they were measured on;
    of an empty table only that it is not empty.

    Raises:
        ConfigError: no such source.
    """
    if own_labels is None:
        fields_of(source)
    if not samples.num_rows:
        return _ANY_TABLE
    same = ("grid", "image_height_pixel", "image_width_pixel")
    of_object = source == VIEWS
    suite = [
        *_ANY_SOURCE,
        *(() if of_object or own_labels is not None else _ROOMS),
        *(_same_everywhere(name, samples[name]) for name in same),
    ]
    if any(samples["part"].to_pylist()):
        suite.extend(_STORED)
    if own_labels is not None:
        return (*suite, *_own(own_labels))
    if of_object:
        return (*suite, *_VIEWS)
    suite.extend(_FRONT3D if source in FRONT3D_FORM else _MATTERPORT)
    if source == "front3d":
        suite.extend(_FRONT3D_ONLY)
    if samples.num_rows >= _MEASURED_VIEWS:
        suite.extend(_FRONT3D_SHARES if source in FRONT3D_FORM else _MATTERPORT_SHARES)
    return tuple(suite)


def _own(labels: Sequence[Label]) -> tuple[Expectation, ...]:
    last = max((label.id for label in labels), default=0)
    return (
        _values("warning", "splits_of_scene", None, 1, "no scene in two splits"),
        _values("critical", "depth_valid_share", 0, 1, "a share"),
        _values("critical", "classes_2d_max", 0, last, "the form's labels"),
        _values("critical", "classes_3d_max", 0, last, "the form's labels"),
    )


def _same_everywhere(name: str, column: pa.ChunkedArray) -> Expectation:
    usual = Counter(column.to_pylist()).most_common(1)[0][0]
    return Expectation("critical", "ExpectColumnValuesToBeInSet", name, "one array holds all samples", {"value_set": [usual]})


def expect(source: str, samples: pa.Table, folder: Path | None = None, own_labels: Sequence[Label] | None = None) -> Expected:
    """Hold a samples table against the suite of its source.

    Args:
        source: one of ``schemas.fields.SOURCES``, or the name of a form of one's own.
        samples: rows of the samples table.
        folder: where to write ``validation.json`` and the data docs (``docs/index.html``, static, no script, loads nothing from
            anywhere); None to write nothing.
        own_labels: the classes of a form of one's own; None for a built-in source.

    Returns:
        What failed. An empty table is a critical failure.

    Raises:
        ConfigError: no such source, or the table lacks columns.
    """
    if missing := [name for name in SAMPLES.names if name not in samples.column_names]:
        raise ConfigError(f"the table lacks {', '.join(missing)}; give a samples table as an ingest or validate run writes it")
    suite = suite_of(source, samples, own_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own calls
        result, held = _validate(source, suite, facts_of(samples).to_pandas())
        plain: dict[str, Any] = json.loads(json.dumps(result.to_json_dict()))
        expected = _judge(suite, plain["results"])
        if folder is not None:
            _write(folder, f"{source}: {samples.num_rows} samples", plain, _render(result, held, plain), _summary(expected))
    return expected


def _judge(suite: Sequence[Expectation], results: Sequence[Mapping[str, Any]]) -> Expected:
    found = sorted(results, key=lambda judged: int(judged["expectation_config"]["meta"]["index"]))
    failures = (_failure(wanted, judged) for wanted, judged in zip(suite, found, strict=True) if not judged["success"])
    failed = tuple(sorted(failures, key=lambda failure: failure.severity))
    return Expected(len(suite), len(suite) - len(failed), failed)


def _write(folder: Path, title: str, result: Mapping[str, Any], pages: Mapping[str, str], summary: str) -> None:
    index = folder / DOCS_INDEX
    index.parent.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, page in pages.items():
        index.with_name(name).write_text(offline(page, title, summary if name == index.name else ""), encoding="utf-8")


def _validate(source: str, suite: Sequence[Expectation], frame: Any) -> tuple[Any, Any]:
    """Great Expectations' result, and its form of the suite."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx

    context = _quiet_context(gx)
    listed = [_to_library(gx, expectation, index) for index, expectation in enumerate(suite)]
    held = context.suites.add(gx.ExpectationSuite(name=source, expectations=listed))
    asset = context.data_sources.add_pandas("scenemill").add_dataframe_asset("samples")
    data = asset.add_batch_definition_whole_dataframe("samples")
    validation = context.validation_definitions.add(gx.ValidationDefinition(name=source, data=data, suite=held))
    told = {"result_format": "SUMMARY", "unexpected_index_column_names": ["key"], "partial_unexpected_count": _KEYS_TOLD}
    return validation.run(batch_parameters={"dataframe": frame}, result_format=told), held


def _render(result: Any, held: Any, plain: Mapping[str, Any]) -> dict[str, str]:
    """The pages of the data docs, as the library makes them, by file name."""
    from great_expectations.render.renderer import ExpectationSuitePageRenderer, ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    for found, same in zip(result.results, plain["results"], strict=True):
        found.result = same["result"]  # the pages cannot show numpy's numbers
    documents = {
        "index.html": ValidationResultsPageRenderer().render(result),
        "expectations.html": ExpectationSuitePageRenderer().render(held),
    }
    return {name: DefaultJinjaPageView().render(document) for name, document in documents.items()}


def _quiet_context(gx: Any) -> Any:
    """A context in memory: no project folder, no analytics, no progress bars."""
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.data_context.types import base

    if hasattr(EphemeralDataContext, "_get_oss_id"):  # up to 1.5 at least, writes an id to the home folder even with analytics off
        EphemeralDataContext._get_oss_id = classmethod(lambda cls: None)
    config = base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(),
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _to_library(gx: Any, expectation: Expectation, index: int) -> Any:
    column = {"column": expectation.column} if expectation.column else {}
    words = f"{_wanted(expectation)} ({expectation.severity}; {expectation.why})"
    meta = {"index": index, "severity": expectation.severity}
    return getattr(gx.expectations, expectation.kind)(**column, **expectation.settings, meta=meta, description=words)


def _failure(expectation: Expectation, found: Mapping[str, Any]) -> FailedExpectation:
    """A failed result of the library in our words."""
    return FailedExpectation(expectation.severity, expectation.column, f"{_observed(found)}; expected {_wanted(expectation)}")


def _observed(found: Mapping[str, Any]) -> str:
    result = found["result"]
    if "unexpected_count" in result:
        values = ", ".join(dict.fromkeys(_short(value) for value in result["partial_unexpected_list"]))
        keys = ", ".join(dict.fromkeys(str(row["key"]) for row in result.get("partial_unexpected_index_list") or ()))
        return f"{result['unexpected_count']} of {result['element_count']} rows have {values} (samples {keys})"
    if "observed_value" in result:
        return f"found {_short(result['observed_value'])}"
    return f"could not be judged ({'; '.join(_messages(found['exception_info']))})"


def _messages(info: Any) -> Iterator[str]:
    """Messages in the library's notes on exceptions, which are nested or not."""
    if isinstance(info, Mapping):
        if info.get("exception_message"):
            yield str(info["exception_message"])
        for nested in info.values():
            yield from _messages(nested)


def _wanted(expectation: Expectation) -> str:
    settings = expectation.settings
    low, high = settings.get("min_value"), settings.get("max_value")
    words = {
        "ExpectTableRowCountToBeBetween": "at least one row",
        "ExpectColumnValuesToNotBeNull": "a value in every row",
        "ExpectColumnValuesToBeUnique": "every value once",
        "ExpectColumnValuesToMatchRegex": f"text like {settings.get('regex')}",
        "ExpectColumnValueLengthsToBeBetween": "a text that is not empty",
        "ExpectColumnValuesToBeInSet": f"{settings.get('value_set', [None])[0]} as in most rows",
        "ExpectColumnValuesToBeBetween": _range(low, high, settings),
        "ExpectColumnMeanToBeBetween": f"a mean of {_range(low, high, settings)}",
        "ExpectColumnMedianToBeBetween": f"a median of {_range(low, high, settings)}",
    }[expectation.kind]
    return words + (f" in {settings['mostly']:.0%} of the rows" if "mostly" in settings else "")


def _range(low: float | None, high: float | None, settings: Mapping[str, Any]) -> str:
    if low == high:
        return _short(low)
    least = "" if low is None else f"{'more than' if settings.get('strict_min') else 'at least'} {_short(low)}"
    most = "" if high is None else f"{'less than' if settings.get('strict_max') else 'at most'} {_short(high)}"
    return " and ".join(filter(None, (least, most)))


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _summary(expected: Expected) -> str:
    """The failed expectations as a table in HTML."""
    rows = (
        f'<tr><td class="{failed.severity}">{failed.severity}</td><td>{failed.column}</td><td>{html.escape(failed.what)}</td></tr>'
        for failed in expected.failed
    )
    head = "<table><tr><th>Severity</th><th>Column</th><th>What failed</th></tr>"
    told = f"<p>{expected.met} of {expected.expectations} expectations are met.</p>"
    return told + (head + "\n".join(rows) + "</table>" if expected.failed else "")
