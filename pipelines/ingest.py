"""A raw folder into a published store: list, sum, plan, build parts, publish. ``plan`` and ``validate`` share its first half."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from scenemill.pipelines.examine import examine, read_frustum
from scenemill.pipelines.runners import run_groups
from scenemill.pipelines.runs import Run
from scenemill.schemas.config import SAMPLES_PER_PART, IngestConfig
from scenemill.schemas.errors import ConfigError, Conflict, Corrupt, NotPublished, TooManyRejected
from scenemill.schemas.tables import FINDINGS, SAMPLES, Finding, table_of
from scenemill.transforms import publish, sums
from scenemill.transforms.folders import find_root, sha256, split_rank
from scenemill.transforms.layout import CONVERSION, ROOT, Layout
from scenemill.transforms.parts import PartPlan, PartWriter, Planned, Receipt, plan_parts, read_part_tables, read_receipt
from scenemill.transforms.sources import Listed, Source, find_unlisted, list_samples, open_source
from scenemill.transforms.store import Store, open_store
from scenemill.transforms.verify import verify_store
from scenemill.transforms.versions import Draft, draft_version, encode_frustum, prepare, publish_version
from scenemill.validators.checks import CHECKS_VERSION
from scenemill.validators.suites import Expected, expect

LIST_CHECKS: Final = ("list", "unlisted", "duplicate", "split_overlap", "frustum_mask")
"""Checks of the folder as a whole: judged anew in every run."""

_SUM_GROUP: Final = 64

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def no_progress(doing: str, done: int, total: int) -> None:
    """For callers who do not watch."""


@dataclass(frozen=True)
class Folder:
    """A raw folder, listed and summed.

    Attributes:
        source: its form and sizes.
        samples: what the lists name, sorted by key.
        sums: key -> checksums of the raw files.
        findings: key -> what is wrong with the lists or between views; "" for the folder itself.
    """

    source: Source
    samples: tuple[Listed, ...]
    sums: Mapping[str, sums.Sums]
    findings: Mapping[str, Sequence[Finding]]

    @property
    def unnamed(self) -> list[str]:
        """Places in the lists that name no sample; each counts as one rejected."""
        return [key for key, found in self.findings.items() if key and any(finding.blocks for finding in found)]

    @property
    def listed(self) -> int:
        """How many samples the lists ask for."""
        return len(self.samples) + len(self.unnamed)


@dataclass(frozen=True)
class Plan:
    """What a run is to do on top of what is published.

    Attributes:
        layout: of the store.
        base: the published version, or None.
        parts: to build.
        kept: keys whose rows the published version holds already, from the same raw files.
        still_rejected: keys that the published version rejected, with the same raw files.
    """

    layout: Layout
    base: Store | None
    parts: tuple[PartPlan, ...]
    kept: frozenset[str]
    still_rejected: frozenset[str]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the receipt's figures.

    Attributes:
        outcome: "published", "unchanged" or "stopped".
        version: id of the version that readers see now, or None.
        listed, stored, rejected, new: samples; listed = stored + rejected, and ``new`` of the stored were written by this run.
        parts, parts_built: in the version, and by this run.
        raw_byte, stored_byte: read and written by this run.
        findings: of this run's samples and folder.
        samples: rows of this run's stored samples.
        seconds: from start to end.
        expected: how the samples table as a whole was judged; None where nothing was new.
        report: folder with the run's validation result and data docs; None where nothing was new.
    """

    outcome: str
    version: str | None
    listed: int
    stored: int
    rejected: int
    new: int
    parts: int
    parts_built: int
    raw_byte: int
    stored_byte: int
    findings: pa.Table
    samples: pa.Table
    seconds: float = 0.0
    expected: Expected | None = None
    report: Path | None = None


def read_folder(
    config: IngestConfig, remembered: Mapping[str, sums.Sums], layout: Layout | None, on_progress: OnProgress
) -> Folder:
    """List the samples of a raw folder and sum their files, reading only those that changed since they were remembered.

    Raises:
        ConfigError: no folder, no list, or nothing readable in it.
    """
    root = find_root(config.input)
    listed, findings = list_samples(config.source, root, config.splits)
    if not listed:
        raise ConfigError(f"0 samples in the split lists under {root}; expected data/<scene>/rgb_* and lists that name them")
    everything = listed
    listed = listed[: config.limit]
    source = open_source(config.source, root, listed, layout.grid if layout else None, layout.image if layout else None)
    known = {sample.key: remembered[sample.key] for sample in listed if _is_fresh(source, sample, remembered)}
    unknown = [sample for sample in listed if sample.key not in known]
    groups = [unknown[start : start + _SUM_GROUP] for start in range(0, len(unknown), _SUM_GROUP)]
    with TemporaryDirectory() as work:
        function = partial(sums.sums_tables, source)
        done = run_groups(
            "Sum raw files", function, groups, Path(work), 1, lambda done: on_progress("Summing raw files", done, len(groups))
        )
        for (table,) in done:
            known.update(sums.sums_from(table))
    found = {key: list(some) for key, some in findings.items()}
    for key in find_unlisted(config.source, root, everything):
        found.setdefault(key, []).append(
            Finding("unlisted", "", "info", "in the folder, in no list that was read", "a list that names it")
        )
    _compare_views(listed, source.image, known, found)
    return Folder(source, tuple(listed), known, found)


def _is_fresh(source: Source, listed: Listed, remembered: Mapping[str, sums.Sums]) -> bool:
    held = remembered.get(listed.key)
    return held is not None and held.fingerprint == sums.fingerprint_of(source, listed)


def _compare_views(
    listed: Sequence[Listed], image: tuple[int, int], known: Mapping[str, sums.Sums], found: dict[str, list[Finding]]
) -> None:
    """Findings for views whose list states another image size, of equal content under two keys, and of such in two splits."""
    for sample in listed:
        if sample.size is not None and sample.size != image:
            observed, expected = (" x ".join(map(str, size)) for size in (sample.size, image))
            found.setdefault(sample.key, []).append(
                Finding("list", "rgb", "warning", f"{observed} pixels by the list", f"{expected} pixels")
            )
    same: dict[str, list[Listed]] = defaultdict(list)
    for sample in listed:
        if content := known[sample.key].content:
            same[content].append(sample)
    for group in same.values():
        for sample in group if len(group) > 1 else ():
            others = [other for other in group if other is not sample]
            names = ", ".join(other.key for other in others[:3])
            found.setdefault(sample.key, []).append(
                Finding("duplicate", "", "warning", f"image, depth and labels of {names}", "every view once")
            )
            if strange := sorted({split for other in others for split in other.splits} - set(sample.splits)):
                observed = f"the same content in {', '.join(strange)}"
                found[sample.key].append(Finding("split_overlap", "", "warning", observed, "one split per view"))


def open_base(store: Path | None) -> Store | None:
    """The version a run builds upon, or None in a new store."""
    try:
        return open_store(store) if store is not None else None
    except NotPublished:
        return None


def make_plan(config: IngestConfig, folder: Folder, base: Store | None, broken: frozenset[str] = frozenset()) -> Plan:
    """Decide what is to be built: every listed sample that the published version does not hold from the same raw files.

    Args:
        config: of the run.
        folder: the raw folder, summed.
        base: the published version.
        broken: ids of published parts that cannot be trusted any more.

    Raises:
        ConfigError: the settings differ from the store's.
    """
    layout = _layout(config, folder.source, base)
    kept, rejected = _known(base, folder, broken)
    build = [
        Planned(sample, folder.sums[sample.key].digest)
        for sample in sorted(folder.samples, key=lambda sample: (split_rank(sample.splits[0]), sample.key))
        if sample.key not in kept and sample.key not in rejected
    ]
    parts = plan_parts(layout, build, base.manifest["slots"] if base else 0, CHECKS_VERSION)
    return Plan(layout, base, tuple(parts), kept, rejected)


def _layout(config: IngestConfig, source: Source, base: Store | None) -> Layout:
    encoded = encode_frustum(read_frustum(source)[0])
    frustum = sha256(encoded) if encoded else ""
    if base is None:
        return Layout(
            source.name, source.grid, source.image, config.samples_per_part or SAMPLES_PER_PART, config.precision, frustum
        )
    held = base.layout
    asked = {
        "source": config.source,
        "precision": config.precision,
        "samples_per_part": config.samples_per_part or held.samples_per_part,
        "frustum": frustum,
    }
    for name, value in asked.items():
        if value != getattr(held, name):
            raise ConfigError(
                f"store {base.root}: {name} is {getattr(held, name)!r}, not {value!r}; say the same, or use another store"
            )
    return held


def _known(base: Store | None, folder: Folder, broken: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Keys that the published version stored, and keys that it rejected, from raw files that have not changed since."""
    if base is None or (base.manifest["conversion"], base.manifest["checks"]) != (CONVERSION, CHECKS_VERSION):
        return frozenset(), frozenset()
    digests = {key: held.digest for key, held in folder.sums.items()}
    rows = base.samples.select(["key", "digest", "part"]).to_pylist()
    kept = {row["key"] for row in rows if digests.get(row["key"]) == row["digest"] and row["part"] not in broken}
    found = base.findings.select(["key", "digest", "rejected"]).to_pylist()
    rejected = {row["key"] for row in found if row["rejected"] and row["digest"] and digests.get(row["key"]) == row["digest"]}
    return frozenset(kept), frozenset(rejected)


def build_part(source: Source, layout: Layout, store: Path, part: PartPlan) -> tuple[pa.Table]:
    """Read, check and write the samples of one part, one sample in memory at a time; a finished part is left as it is.

    Returns:
        One row: the part's id. What it came to is in its receipt.

    Raises:
        Conflict: a raw file changed since the plan was made, or another run wrote to the store.
    """
    if read_receipt(store, part.id) is None:
        with PartWriter(store, layout, part) as writer:
            for position, planned in enumerate(part.samples):
                sample, findings, facts = examine(source, planned.listed)
                if sample.facts["digest"] != planned.digest:
                    raise Conflict(f"sample {sample.key}: its raw files changed while the run was under way; run again")
                if facts:
                    writer.append(position, sample, facts, findings)
                else:
                    writer.reject(sample, findings)
            writer.finish()
    return (pa.table({"part": [part.id]}),)


def ingest(config: IngestConfig, on_progress: OnProgress = no_progress) -> Outcome:
    """Convert a raw folder into a store and publish it, or add to the store what is new.

    Raises:
        ConfigError: the call, the folder or the store's settings do not fit.
        Conflict: another run holds or has published the store, or raw files changed meanwhile.
        TooManyRejected: more than ``config.max_rejected``; nothing was published, finished parts are kept.
    """
    if config.output is None:
        raise ConfigError("ingest needs an output store")
    with publish.locked(config.output):
        run = Run(config, "ingest")
        base = open_base(config.output)
        remembered = sums.recall(config.output)
        folder = read_folder(config, remembered, base.layout if base else None, on_progress)
        broken = broken_parts(config.output, base) if config.repair else frozenset()
        plan = make_plan(config, folder, base, broken)
        finished = prepare(config.output, base, plan.parts)
        sums.remember(config.output, {**remembered, **folder.sums})
        receipts = _build(config, folder, plan, finished, on_progress)
        draft = _draft(config.output, folder, plan, receipts)
        outcome = _outcome(folder, plan, receipts, draft, built=len(plan.parts) - len(finished))
        if base is not None and draft.manifest["tables"] == base.manifest["tables"]:
            return replace(outcome, outcome="unchanged", version=base.version, seconds=run.seconds)
        return _publish(config, folder, plan, draft, outcome, run)


def broken_parts(store: Path, base: Store | None) -> frozenset[str]:
    """Ids of published parts that differ from their checksums."""
    return frozenset(broken.part for broken in verify_store(store).broken if broken.part) if base else frozenset()


def _build(config: IngestConfig, folder: Folder, plan: Plan, finished: Sequence[Receipt], on_progress: OnProgress) -> list[Receipt]:
    store = config.output
    assert store is not None
    whole = {receipt.id for receipt in finished}
    todo = [part for part in plan.parts if part.id not in whole]
    function = partial(build_part, folder.source, plan.layout, store)
    with TemporaryDirectory(dir=store / publish.WORK) as work:
        before = len(finished)
        for _ in run_groups(
            "Build parts",
            function,
            todo,
            Path(work),
            config.workers,
            lambda done: on_progress("Building parts", before + done, len(plan.parts)),
        ):
            pass
    receipts = [read_receipt(store, part.id) for part in plan.parts]
    missing = [part.id for part, receipt in zip(plan.parts, receipts, strict=True) if receipt is None]
    if missing:
        raise Corrupt(f"store {store}: {len(missing)} parts without a receipt, {missing[0]} first; run the same command again")
    return [receipt for receipt in receipts if receipt is not None]


def _draft(store: Path, folder: Folder, plan: Plan, receipts: Sequence[Receipt]) -> Draft:
    """The tables of the new version: what stays of the old one, what the parts brought, and the splits and lists of today."""
    built = [read_part_tables(store, receipt) for receipt in receipts]
    base = plan.base
    covered = set(folder.sums) | set(folder.findings)
    old_samples = base.samples if base else SAMPLES.empty_table()
    in_run = pc.is_in(old_samples["key"], pa.array(sorted(set(folder.sums) - plan.kept), pa.string()))
    samples = pa.concat_tables([old_samples.filter(pc.invert(in_run)), *(table for table, _ in built)])
    samples = with_splits(samples, folder.samples).sort_by("key")
    old_findings = base.findings if base else FINDINGS.empty_table()
    still = plan.kept | plan.still_rejected
    keep = [
        row["check"] not in LIST_CHECKS
        if row["key"] in still
        else row["key"] not in covered and row["check"] not in ("unlisted", "frustum_mask")
        for row in old_findings.select(["key", "check"]).to_pylist()
    ]
    findings = [old_findings.filter(pa.array(keep, pa.bool_())), *(table for _, table in built), folder_findings(folder)]
    ordered = sort_findings(pa.concat_tables(findings))
    slots = max((part.slot + 1 for part in plan.parts), default=base.manifest["slots"] if base else 0)
    return draft_version(
        base, plan.layout, CHECKS_VERSION, receipts, store, samples, ordered, slots, encode_frustum(read_frustum(folder.source)[0])
    )


def with_splits(samples: pa.Table, listed: Sequence[Listed]) -> pa.Table:
    """The samples table with the splits of today's lists; samples that none of them names keep theirs."""
    today = {sample.key: list(sample.splits) for sample in listed}
    held = zip(samples["key"].to_pylist(), samples["splits"].to_pylist(), strict=True)
    splits = [today.get(key, before) for key, before in held]
    columns = {
        "split": pa.array([names[0] for names in splits], pa.string()),
        "splits": pa.array(splits, SAMPLES.field("splits").type),
    }
    for name, column in columns.items():
        samples = samples.set_column(samples.schema.get_field_index(name), SAMPLES.field(name), column)
    return samples


def sort_findings(findings: pa.Table) -> pa.Table:
    """The findings table in its one order."""
    return findings.sort_by([(name, "ascending") for name in ("key", "check", "field", "observed")])


def folder_findings(folder: Folder) -> pa.Table:
    """Rows of the findings table about lists, between views, and of the folder itself."""
    rows = [
        {"key": key, "digest": "", "rejected": finding.blocks, **asdict(finding)}
        for key, found in folder.findings.items()
        for finding in found
    ]
    rows += [{"key": "", "digest": "", "rejected": False, **asdict(finding)} for finding in read_frustum(folder.source)[1]]
    return table_of(FINDINGS, rows)


def _outcome(folder: Folder, plan: Plan, receipts: Sequence[Receipt], draft: Draft, built: int) -> Outcome:
    """Count what became of every listed sample, and hold the counts against each other.

    Raises:
        Corrupt: a sample is neither stored nor rejected.
    """
    keys = pa.array(sorted({*folder.sums, *folder.unnamed}), pa.string())
    samples = draft.samples.filter(pc.is_in(draft.samples["key"], keys))
    findings = draft.findings.filter(
        pc.or_(pc.is_in(draft.findings["key"], keys), pc.is_in(draft.findings["check"], pa.array(LIST_CHECKS)))
    )
    rejected = set(findings.filter(findings["rejected"])["key"].to_pylist())
    if samples.num_rows + len(rejected) != folder.listed or rejected & set(samples["key"].to_pylist()):
        raise Corrupt(
            f"{folder.listed} samples listed, but {samples.num_rows} stored and {len(rejected)} rejected: "
            "nothing was published; please report it"
        )
    return Outcome(
        outcome="published",
        version=None,
        listed=folder.listed,
        stored=samples.num_rows,
        rejected=len(rejected),
        new=sum(receipt.stored for receipt in receipts),
        parts=len(draft.manifest["parts"]),
        parts_built=built,
        raw_byte=sum(receipt.raw_byte for receipt in receipts),
        stored_byte=sum(receipt.stored_byte for receipt in receipts),
        findings=findings,
        samples=samples,
    )


def _publish(config: IngestConfig, folder: Folder, plan: Plan, draft: Draft, outcome: Outcome, run: Run) -> Outcome:
    """Judge the table as a whole, then publish or stop."""
    store = config.output
    assert store is not None
    expected = expect(config.source, draft.samples, run.folder(store)) if draft.samples.num_rows else Expected(0, 0, ())
    problem = _stop_reason(config, outcome, expected)
    if problem:
        run.write(store, replace(outcome, outcome="stopped"), expected, findings=outcome.findings)
        raise TooManyRejected(f"{problem}; nothing was published. Reasons: {run.folder(store) / 'findings.parquet'}")
    root = store / ROOT
    version = publish_version(store, draft, root.read_bytes() if plan.base is not None else None)
    published = replace(outcome, version=version, seconds=run.seconds, expected=expected, report=run.folder(store))
    run.write(store, published, expected)
    publish.reached("run written")
    return published


def _stop_reason(config: IngestConfig, outcome: Outcome, expected: Expected) -> str:
    allowed = config.rejected_allowed(outcome.listed)
    if outcome.rejected > allowed:
        return f"{outcome.rejected} of {outcome.listed} samples rejected, {allowed} allowed by --max-rejected"
    if not outcome.stored:
        return f"all {outcome.listed} samples rejected"
    if expected.blocks:
        failed = next(failure for failure in expected.failed if failure.severity == "critical")
        return f"the samples table as a whole fails: {failed}"
    return ""
