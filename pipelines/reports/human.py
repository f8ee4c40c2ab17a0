"""What the commands print: figures in human units, findings as something a person can act on."""

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scenemill.pipelines.reports.results import printable
from scenemill.schemas.places import Place
from scenemill.transforms.store import Store, history
from scenemill.validators.suites import DOCS_INDEX

if TYPE_CHECKING:
    from scenemill.pipelines.forecast import Forecast
    from scenemill.pipelines.ingest import Outcome
    from scenemill.pipelines.validate import Validation
    from scenemill.trainers.speed import LoaderSpeed
    from scenemill.transforms.verify import Verified

_SEVERITIES = ("error", "warning", "info")
_STYLES = {"error": "red", "warning": "yellow", "info": "dim"}
_ROWS = 40
_DIGITS = 12  # of a version's id, where there is little room; --version takes as few
_ROOMY = 72  # columns of a terminal that has room for sentences beside names
_OF_VOLUMES = re.compile("grid|_3d|voxel|geometry|surface|agree")  # columns that say nothing where there are no volumes


def size(byte: float) -> str:
    """Bytes in human units.

    >>> size(1536), size(10_759_802)
    ('1.5 KiB', '10.3 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if byte < 1024:
            return f"{byte:.0f} {unit}" if unit == "B" else f"{byte:.1f} {unit}"
        byte /= 1024
    return f"{byte:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in human units.

    >>> duration(4.2), duration(75), duration(7300)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _pairs(console: Console, rows: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", str(value))
    console.print(table)


def summarize(findings: pa.Table) -> list[dict[str, Any]]:
    """One row per check, field and severity: how many samples, and an example."""
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in findings.to_pylist():
        groups[_SEVERITIES.index(row["severity"]), row["check"], row["field"]].append(row)
    return [
        {
            "severity": _SEVERITIES[severity],
            "check": check,
            "field": field,
            "samples": len({row["key"] for row in rows}),
            **{name: rows[0][name] for name in ("key", "observed", "expected")},
        }
        for (severity, check, field), rows in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0]))
    ]


def print_findings(console: Console, findings: pa.Table) -> None:
    """The summary of findings, the worst first: what and where, what was seen, and a sample that has it."""
    rows = summarize(findings)
    if not rows:
        console.print("Nothing found wrong.")
        return
    for row in rows[:_ROWS]:
        samples = f"{row['samples']} sample{'' if row['samples'] == 1 else 's'}" if row["key"] else ""
        told = printable("".join(f"  {name}" for name in (row["check"], row["field"], samples) if name))
        console.print(Text.assemble((row["severity"], _STYLES[row["severity"]]), told), soft_wrap=True)
        example = (f"for example {row['key']}",) if row["key"] else ()  # a finding about the folder is about no sample
        for line in (f"{row['observed']}; expected {row['expected']}", *example):
            console.print(Padding(Text(printable(line), overflow="fold"), (0, 0, 0, 4), expand=False))
    if len(rows) > _ROWS:
        console.print(f"and {len(rows) - _ROWS} more kinds of finding")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def print_forecast(console: Console, forecast: "Forecast") -> None:
    """What an ingest would do."""
    kinds = f"{forecast.new} to build, {forecast.kept} stored, {forecast.rejected_before} rejected before"
    if not forecast.new:
        console.print(f"samples  {forecast.listed} in: {kinds}", highlight=False)
        console.print("Nothing to build: an ingest would publish no new samples. Nothing was written.")
        return
    _pairs(
        console,
        {
            "samples": f"{forecast.listed} in: {kinds}",
            "parts": forecast.parts,
            "to read": size(forecast.raw_byte),
            "to write": f"about {size(forecast.stored_byte)}",
            "time": f"about {duration(forecast.seconds)} on {forecast.workers} process(es), and some seconds to start",
            "measured": f"{1000 * forecast.seconds_per_sample:.0f} ms per sample in one process, on {forecast.tried} samples",
        },
    )
    console.print("Nothing was written.")


def print_loader_speed(console: Console, speed: "LoaderSpeed") -> None:
    """What ``bench-loader`` measured: stages, then the loader with each number of workers."""
    from scenemill.trainers.speed import wait_summary

    sizes = f"{size(speed.stored_byte)} stored, {size(speed.moved_byte)} moved, {size(speed.dense_byte)} of tensors"
    _pairs(console, {"samples": speed.samples, "per sample": sizes, "device": f"{speed.device}, batches of {speed.batch_size}"})
    stages = Table(box=None, header_style="bold", padding=(0, 1))
    for name in ("stage", "ms per sample", "share"):
        stages.add_column(name, justify="left" if name == "stage" else "right")
    total = sum(speed.stage_ms.values())
    for stage, milliseconds in speed.stage_ms.items():
        stages.add_row(stage, f"{milliseconds:.2f}", f"{100 * milliseconds / total:.0f} %")
    stages.add_row("sum", f"{total:.2f}", "")
    console.print(stages)
    feeds = Table(box=None, header_style="bold", padding=(0, 1))
    for name in ("workers", "samples/s", "MB/s", "wait: median", "p99", "longest", "stalled"):
        feeds.add_column(name, justify="right")
    for feed in speed.feeds:
        waits = [f"{value:.1f} ms" for value in wait_summary(feed.wait_ms).values()]
        feeds.add_row(str(feed.workers), f"{feed.samples_per_s:.1f}", f"{feed.mb_per_s:.0f}", *waits, f"{100 * feed.stalled:.0f} %")
    console.print(feeds)
    if not speed.step_ms:
        console.print("Batches were taken as fast as they came: --step-ms 100 shows what a step of 100 ms would wait.")


def print_outcome(console: Console, store: Place, outcome: "Outcome") -> None:
    """The receipt of a run, and what was found."""
    print_findings(console, outcome.findings)
    if outcome.outcome == "unchanged":
        console.print(f"Nothing to do: version {outcome.version} of {store} holds these very samples.")
    expected = outcome.expected
    for failed in expected.failed if expected else ():
        console.print(f"[yellow]expectation[/] {_plain(str(failed))}")
    _pairs(
        console,
        {
            "store": store,
            "version": outcome.version,
            "samples": f"{outcome.listed} in = {outcome.stored} stored + {outcome.rejected} rejected ({outcome.new} new)",
            "parts": f"{outcome.parts} ({outcome.parts_built} built now)",
            "bytes": f"{size(outcome.raw_byte)} read, {size(outcome.stored_byte)} written",
            "time": duration(outcome.seconds),
            **({"expectations": f"{expected.met} of {expected.expectations} met"} if expected else {}),
            **({"data docs": outcome.report / DOCS_INDEX} if outcome.report else {}),
        },
    )


def validation_json(result: "Validation") -> dict[str, Any]:
    """The result for machines."""
    return {
        "listed": result.folder.listed,
        "passed": result.passed,
        "rejected": result.rejected,
        "findings": summarize(result.findings),
        "expectations": result.expected.expectations,
        "expectations_met": result.expected.met,
        "failed": [str(failed) for failed in result.expected.failed],
    }


def _sizes(grid: int, image: Sequence[int], voxel_m: float | None = None) -> str:
    """What volumes, where there are any, and images measure."""
    voxels = f"volumes of {grid}^3 voxels{f' of {voxel_m} m' if voxel_m else ''}, " if grid else ""
    return f"{voxels}images of {image[1]} x {image[0]} pixels"


def print_validation(console: Console, result: "Validation", report: Path | None) -> None:
    """The result for a person: worst first."""
    print_findings(console, result.findings)
    for failed in result.expected.failed:
        console.print(f"[yellow]expectation[/] {_plain(str(failed))}")
    source = result.folder.source
    _pairs(
        console,
        {
            "folder": source.root,
            "form": f"{source.name}, {_sizes(source.grid, source.image)}",
            "samples": f"{result.folder.listed} in = {result.passed} pass + {result.rejected} rejected",
            "expectations": f"{result.expected.met} of {result.expected.expectations} met",
            **({"report": report} if report else {}),
        },
    )


def print_verified(console: Console, store: Place, verified: "Verified") -> None:
    """What a verification saw."""
    for broken in verified.broken[:_ROWS]:
        where = f"part {broken.part}: " if broken.part else ""
        samples = f"{len(broken.keys)} samples: {', '.join(broken.keys[:3])}" if broken.keys else "no sample's data"
        console.print(f"[red]broken[/] {where}{broken.path}: {_plain(broken.problem)} ({samples})", soft_wrap=True)
    verdict = (
        f"[red]{len(verified.broken)} broken[/]; build them anew with: scenemill ingest ... --repair"
        if verified.broken
        else "[green]whole[/]"
    )
    versions = f"{verified.versions} version{'' if verified.versions == 1 else 's'}"
    read = f"{versions}, {verified.parts} parts, {verified.files} files, {size(verified.size_byte)} read"
    console.print(f"{store}: {read}: {verdict}", soft_wrap=True)


def store_json(store: Store) -> dict[str, Any]:
    """A store's facts for machines."""
    splits: dict[str, int] = defaultdict(int)
    for names in store.samples["splits"].to_pylist():
        for name in names:
            splits[name] += 1
    return {
        "store": str(store.root),
        "version": store.version,
        "parent": store.manifest["parent"],
        "source": store.layout.source,
        "grid": store.layout.grid,
        "voxel_m": store.manifest["voxel_m"],
        "image": list(store.layout.image),
        "precision": store.layout.precision,
        "error_max_voxel": store.manifest["error_max_voxel"],
        "stored": len(store),
        "rejected": store.manifest["rejected"],
        "splits": dict(splits),
        "parts": len(store.manifest["parts"]),
        "samples_per_part": store.layout.samples_per_part,
        "raw_byte": sum(store.samples["raw_byte"].to_pylist()),
        "stored_byte": sum(store.samples["stored_byte"].to_pylist()),
        "fields": [
            {"name": field.name, "axes": list(field.axes), "dtype": field.dtype, "unit": field.unit}
            for field in store.layout.fields
        ],
    }


def print_store(console: Console, store: Store) -> None:
    """A store's facts and fields."""
    facts = store_json(store)
    columns = ("field", "axes", "stored as", "unit", "meaning")[: 5 if console.width >= _ROOMY else 4]
    fields = Table(*columns, box=None, header_style="bold", padding=(0, 1))
    for field in store.layout.fields:
        row = (field.name, " ".join(field.axes), store.layout.storage(field).dtype, field.unit, field.meaning)
        fields.add_row(*row[: len(columns)])
    ratio = facts["stored_byte"] / max(1, facts["raw_byte"])
    _pairs(
        console,
        {
            "store": store.root,
            "version": store.version,
            "source": f"{facts['source']}: {_sizes(facts['grid'], facts['image'], facts['voxel_m'])}",
            "samples": f"{facts['stored']} stored, {facts['rejected']} rejected; "
            + ", ".join(f"{n} {s}" for s, n in facts["splits"].items()),
            "parts": f"{facts['parts']} of up to {facts['samples_per_part']} samples",
            "bytes": f"{size(facts['stored_byte'])} for {size(facts['raw_byte'])} of raw files ({ratio:.2f}x)",
            **({"precision": f"{facts['precision']}, largest error {facts['error_max_voxel']:.2g} voxel"} if facts["grid"] else {}),
        },
    )
    console.print(fields)
    if len(store):
        console.print(f"The first sample: scenemill show {store.root} {store.keys[0]} --png sheet.png", soft_wrap=True)


def print_sample(console: Console, store: Store, key: str, png: Path | None) -> None:
    """One sample's row of the samples table, and what was found about it."""
    facts = store.facts(key)
    names = {label["id"]: label["name"] for label in store.manifest["labels"]}
    hidden = {"files", "campose", "instances_2d", "instances_3d", "image", "scene"}
    if not facts["grid"]:
        hidden |= {name for name in facts if _OF_VOLUMES.search(name)}
    shown = {name: value for name, value in facts.items() if name not in hidden}
    for name in shown.keys() & {"classes_2d", "classes_3d"}:
        shown[name] = ", ".join(f"{i} {names.get(i, '?' if names else '')}".strip() for i in facts[name])
    for name in ("intrinsics", "world_from_camera"):
        shown[name] = " ".join(f"{value:.4g}" for value in facts[name]) if facts[name] else "none"
    shown["fields"] = ", ".join(facts["fields"])
    shown["splits"] = ", ".join(facts["splits"])
    _pairs(console, {name: _fact(name, value) for name, value in shown.items()})
    console.print("[bold]raw files[/]")
    for file in facts["files"]:
        told = f"{', '.join(file['fields'])}: {size(file['size_byte'])}, sha256 {file['sha256'][:16]}"
        console.print(f"{_plain(file['path'])}\n    {told}", highlight=False, soft_wrap=True)
    found = store.findings.filter(pa.compute.equal(store.findings["key"], key))
    if found.num_rows:
        print_findings(console, found)
    if png is not None:
        console.print(f"contact sheet: {png}")


def _fact(name: str, value: Any) -> Any:
    if name.endswith("_byte"):
        return size(value)
    return f"{value:.4g}" if isinstance(value, float) else value


def versions_json(root: Place) -> list[dict[str, Any]]:
    """The published versions for machines, newest first; when and how long from the runs table."""
    opened = history(root)
    runs = {row["version"]: row for row in opened[0].runs.to_pylist() if row["version"]}
    return [
        {
            "version": version.version,
            "parent": version.manifest["parent"],
            "published": runs[version.version]["started"].isoformat(timespec="seconds") if version.version in runs else None,
            "stored": version.manifest["stored"],
            "rejected": version.manifest["rejected"],
            "parts": len(version.manifest["parts"]),
        }
        for version in opened
    ]


def print_versions(console: Console, listed: list[dict[str, Any]]) -> None:
    """The versions as a table."""
    numbers = {"stored": True, "rejected": True, "parts": True}
    table = _figures(**{"version": False, "published (UTC)": False, **numbers, "follows": False})
    for row in listed:
        published = row["published"]
        when = f"{datetime.fromisoformat(published):%Y-%m-%d %H:%M}" if published else "?"
        table.add_row(row["version"], when, *(str(row[name]) for name in ("stored", "rejected", "parts")), row["parent"] or "-")
    console.print(table)


def print_runs(console: Console, runs: pa.Table) -> None:
    """The runs on a store as a table that fits a terminal of 80 columns: all else of a run is in its page and its JSON."""
    table = _figures(**{"started (UTC)": False, "outcome": False, "in": True, "stored": True, "rejected": True, "time": True})
    table.add_column("version", no_wrap=True)
    for row in runs.to_pylist():
        counts = (str(row[name]) for name in ("listed", "stored", "rejected"))
        version = (row["version"] or "-")[:_DIGITS]
        table.add_row(f"{row['started']:%Y-%m-%d %H:%M}", row["outcome"], *counts, duration(row["seconds"]), version)
    console.print(table)


def _figures(**columns: bool) -> Table:
    """An empty table; columns of numbers are true."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name, numbers in columns.items():
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    return table
