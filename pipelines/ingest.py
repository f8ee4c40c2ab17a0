"""A raw folder into a published store: list, sum, plan, build parts, publish. ``plan`` and ``validate`` share its first half."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from scenemill.pipelines.examine import checks_of, examine, read_frustum
from scenemill.pipelines.folder import (
    LIST_CHECKS,
    Folder,
    folder_findings,
    read_folder,
    sort_findings,
    with_splits,
)
from scenemill.pipelines.plan import Plan, make_plan, open_base
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.runners.groups import run_groups
from scenemill.pipelines.runners.options import LOCAL, RunnerConfig
from scenemill.pipelines.runs import Run
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Conflict, Corrupt, TooManyRejected
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.steps import reached
from scenemill.transforms import publish, sums
from scenemill.transforms.layout import ROOT, Layout
from scenemill.transforms.parts import PartPlan, PartWriter, Receipt, finished_part, read_part_tables
from scenemill.transforms.sources import Source
from scenemill.transforms.store import Store
from scenemill.transforms.verify import verify_store
from scenemill.transforms.versions import (
    Draft,
    draft_version,
    encode_frustum,
    prepare,
    publish_version,
    restore_documents,
    restore_root,
)
from scenemill.transforms.view_folders import FOLDER_CHECKS
from scenemill.validators.suites import Expected, expect


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
    report: Place | None = None


def build_part(source: Source, layout: Layout, store: Place, token: str, part: PartPlan) -> tuple[pa.Table]:
    """Read, check and write the samples of one part, one sample in memory at a time; a finished part is left as it is.

    Args:
        source: the raw folder.
        layout, store: of the store.
        token: of the run that holds the store; "" where none does.
        part: what to build.

    Returns:
        One row: the part's id. What it came to is in its receipt.

    Raises:
        Conflict: a raw file changed since the plan was made, or another run wrote to the store.
    """
    with publish.building(store, token):
        if finished_part(store, part.id) is None:
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


def ingest(
    config: IngestConfig,
    on_progress: OnProgress = no_progress,
    runner: RunnerConfig = LOCAL,
    *,
    built_by: str = "",
    built: int = 0,
) -> Outcome:
    """Convert a raw folder into a store and publish it, or add to the store what is new.

    Args:
        config: of the run.
        on_progress: told how far it is.
        runner: where parts are built: local, dask or portable. All else is done here, publishing once and last.
        built_by: the runner whose job built the parts, where this is the last step of such a job; see ``runners/graph.py``.
        built: parts that this job built.

    Raises:
        ConfigError: the call, the folder, the store's settings or the runner do not fit.
        Conflict: another run holds or has published the store, or raw files changed meanwhile.
        TooManyRejected: more than ``config.max_rejected``; nothing was published, finished parts are kept.
    """
    if config.output is None:
        raise ConfigError("ingest needs an output store")
    if runner.runner != "local" and config.workers > 1:
        raise ConfigError(f"--workers {config.workers} says nothing to --runner {runner.runner}, which has workers of its own")
    with publish.locked(config.output) as token:
        run = Run(config, "ingest", built_by or runner.runner)
        with run.stage("list"):
            folder, plan, finished = survey(config, on_progress)
        with run.stage("build"):
            receipts = _build(config, folder, plan, finished, token, on_progress, runner)
        draft = _draft(config.output, folder, plan, receipts)
        outcome = _outcome(folder, plan, receipts, draft, built=built + len(plan.parts) - len(finished))
        base = plan.base
        if base is not None and draft.manifest["tables"] == base.manifest["tables"]:
            if config.repair:
                restore_documents(config.output, replace(draft, manifest=base.content), base.version)
            return replace(outcome, outcome="unchanged", version=base.version, seconds=run.seconds)
        return _publish(config, plan, draft, outcome, run)


def survey(config: IngestConfig, on_progress: OnProgress = no_progress) -> tuple[Folder, Plan, list[Receipt]]:
    """All that comes before the building: the folder, what is to be done, and which of it is done already.

    The caller holds the store's lock. What killed runs left half done is removed.

    Raises:
        ConfigError: the folder or the store's settings do not fit.
    """
    store = config.output
    assert store is not None
    base = _open_to_repair(store) if config.repair else open_base(store)
    remembered = sums.recall(store)
    folder = read_folder(config, remembered, base.layout if base else None, on_progress)
    plan = make_plan(config, folder, base, _broken_parts(base) if config.repair else frozenset())
    finished = prepare(store, base, plan.parts)
    sums.remember(store, {**remembered, **folder.sums})
    return folder, plan, finished


def _open_to_repair(store: Place) -> Store | None:
    """The published version, its two documents made whole from each other."""
    if isinstance(store, Remote):
        raise ConfigError(f"store {store}: --repair mends stores on a disk; restore the objects, or ingest into another store")
    try:
        base = open_base(store)
    except Corrupt:
        restore_root(store)
        base = open_base(store)
    if base is not None:
        publish.write_whole(store / "versions" / f"{base.version}.json", (store / ROOT).read_bytes())
    return base


def _broken_parts(base: Store | None) -> frozenset[str] | None:
    """Ids of published parts that differ from their checksums; None where the tables do: then nothing published can be kept."""
    if base is None:
        return frozenset()
    broken = verify_store(base.root).broken
    tables = {table["path"] for table in base.manifest["tables"].values()}
    return None if tables & {found.path for found in broken} else frozenset(found.part for found in broken if found.part)


def _build(
    config: IngestConfig,
    folder: Folder,
    plan: Plan,
    finished: Sequence[Receipt],
    token: str,
    on_progress: OnProgress,
    runner: RunnerConfig,
) -> list[Receipt]:
    store = config.output
    assert store is not None
    whole = {receipt.id for receipt in finished}
    publish.announce(store, token)
    todo = [part for part in plan.parts if part.id not in whole]
    function = partial(build_part, folder.source, plan.layout, store, token)
    with TemporaryDirectory(dir=publish.disk_of(store) / publish.WORK) as work:
        before = len(finished)
        for _ in run_groups(
            "Build parts",
            function,
            todo,
            Path(work),
            config.workers,
            lambda done: on_progress("Building parts", before + done, len(plan.parts)),
            runner=runner,
            seen=[place for place in (folder.source.root, folder.source.code) if isinstance(place, Path)],
        ):
            pass
    receipts = [finished_part(store, part.id) for part in plan.parts]
    missing = [part.id for part, receipt in zip(plan.parts, receipts, strict=True) if receipt is None]
    if missing:
        raise Corrupt(f"store {store}: {len(missing)} parts are not whole, {missing[0]} first; run the same command again")
    return [receipt for receipt in receipts if receipt is not None]


def _draft(store: Place, folder: Folder, plan: Plan, receipts: Sequence[Receipt]) -> Draft:
    """The tables of the new version: what stays of the old one, what the parts brought, and the splits and lists of today."""
    built = [read_part_tables(store, receipt) for receipt in receipts]
    base = plan.base
    covered = set(folder.sums) | set(folder.findings)
    in_run = pc.is_in(plan.samples["key"], pa.array(sorted(set(folder.sums) - plan.kept), pa.string()))
    samples = pa.concat_tables([plan.samples.filter(pc.invert(in_run)), *(table for table, _ in built)])
    samples = with_splits(samples, folder.samples).sort_by("key")
    still = plan.kept | plan.still_rejected
    keep = [
        row["check"] not in LIST_CHECKS
        if row["key"] in still
        else row["key"] not in covered and row["check"] not in ("unlisted", *FOLDER_CHECKS) and row["key"] != ""
        for row in plan.findings.select(["key", "check"]).to_pylist()
    ]
    findings = [plan.findings.filter(pa.array(keep, pa.bool_())), *(table for _, table in built), folder_findings(folder)]
    ordered = sort_findings(pa.concat_tables(findings))
    slots = max((part.slot + 1 for part in plan.parts), default=base.manifest["slots"] if base else 0)
    return draft_version(
        base,
        plan.layout,
        checks_of(folder.source),
        receipts,
        store,
        samples,
        ordered,
        slots,
        encode_frustum(read_frustum(folder.source)[0]),
    )


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


def _publish(config: IngestConfig, plan: Plan, draft: Draft, outcome: Outcome, run: Run) -> Outcome:
    """Judge the table as a whole, then publish or stop."""
    store = config.output
    assert store is not None
    own_labels = draft.layout.own_labels if draft.layout.own_fields else None
    with run.stage("judge"), run.writing(store) as folder:
        expected = expect(draft.layout.source, draft.samples, folder, own_labels) if draft.samples.num_rows else Expected(0, 0, ())
    problem = _stop_reason(config, outcome, expected)
    if problem:
        run.write(store, replace(outcome, outcome="stopped"), expected, findings=outcome.findings)
        raise TooManyRejected(f"{problem}; nothing was published. Reasons: {run.folder(store) / 'findings.parquet'}")
    with run.stage("publish"):
        version = publish_version(store, draft, plan.base.published if plan.base is not None else None)
    published = replace(outcome, version=version, seconds=run.seconds, expected=expected, report=run.folder(store))
    run.write(store, published, expected)
    reached("run written")
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
