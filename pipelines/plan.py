"""What a run is to do on top of what is published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from scenemill.pipelines.examine import checks_of, read_frustum
from scenemill.pipelines.folder import Folder
from scenemill.schemas.config import SAMPLES_PER_PART, IngestConfig
from scenemill.schemas.errors import ConfigError, NotPublished
from scenemill.schemas.forms import to_json
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.tables import FINDINGS, SAMPLES
from scenemill.transforms.folders import sha256, split_rank
from scenemill.transforms.layout import CONVERSION, Layout
from scenemill.transforms.object_slots import plan_free
from scenemill.transforms.parts import PartPlan, Planned, plan_parts
from scenemill.transforms.sources import Source
from scenemill.transforms.store import Store, open_store
from scenemill.transforms.versions import encode_frustum


@dataclass(frozen=True)
class Plan:
    """What a run is to do on top of what is published.

    Attributes:
        layout: of the store.
        base: the published version, or None.
        parts: to build.
        samples, findings: tables of the published version; empty where there is none.
        kept: keys whose rows the published version holds already, from the same raw files.
        still_rejected: keys that the published version rejected, with the same raw files.
    """

    layout: Layout
    base: Store | None
    parts: tuple[PartPlan, ...]
    samples: pa.Table
    findings: pa.Table
    kept: frozenset[str]
    still_rejected: frozenset[str]


def open_base(store: Place | None) -> Store | None:
    """The version a run builds upon, or None in a new store."""
    try:
        return open_store(store) if store is not None else None
    except NotPublished:
        return None


def make_plan(config: IngestConfig, folder: Folder, base: Store | None, broken: frozenset[str] | None = frozenset()) -> Plan:
    """Decide what is to be built: every listed sample that the published version does not hold from the same raw files.

    Args:
        config: of the run.
        folder: the raw folder, summed.
        base: the published version.
        broken: ids of published parts that cannot be trusted any more; None where the tables cannot be.

    Raises:
        ConfigError: the settings differ from the store's.
    """
    layout = _layout(config, folder.source, base)
    samples, findings = SAMPLES.empty_table(), FINDINGS.empty_table()
    if base is not None and broken is not None:
        samples, findings = base.samples, base.findings
    kept, rejected = _known(base, folder, samples, findings, broken or frozenset())
    build = [
        Planned(sample, folder.sums[sample.key].digest)
        for sample in sorted(folder.samples, key=lambda sample: (split_rank(sample.splits[0]), sample.key))
        if sample.key not in kept and sample.key not in rejected
    ]
    first_slot, checks = base.manifest["slots"] if base else 0, checks_of(folder.source)
    parts: Sequence[PartPlan] = plan_parts(layout, build, first_slot, checks)
    if isinstance(config.output, Remote):
        parts = plan_free(config.output, first_slot, lambda slot: plan_parts(layout, build, slot, checks))
    return Plan(layout, base, tuple(parts), samples, findings, kept, rejected)


def _layout(config: IngestConfig, source: Source, base: Store | None) -> Layout:
    encoded = encode_frustum(read_frustum(source)[0])
    frustum = sha256(encoded) if encoded else ""
    own = (source.own.fields, source.own.labels) if source.own else ((), ())
    if base is None:
        size = config.samples_per_part or SAMPLES_PER_PART
        return Layout(source.name, source.grid, source.image, size, config.precision, frustum, *own)
    held = base.layout
    asked = {
        "source": source.name,
        "grid": source.grid,
        "precision": config.precision,
        "samples_per_part": config.samples_per_part or held.samples_per_part,
        "frustum": frustum,
    }
    for name, value in asked.items():
        if value != getattr(held, name):
            raise ConfigError(
                f"store {base.root}: {name} is {getattr(held, name)!r}, not {value!r}; say the same, or use another store"
            )
    if differing := _differing(to_json(*own), to_json(held.own_fields, held.own_labels)):
        raise ConfigError(
            f"store {base.root}: {differing} of the form are others than the store's; put them back, or use another store"
        )
    return held


def _differing(form: dict[str, list[Any]], held: dict[str, list[Any]]) -> str:
    """The fields and labels that a form says otherwise than a store holds, in words; "" for none."""
    told = []
    for kind, said in form.items():
        names = sorted({one["name"] for one in (*said, *held[kind]) if one not in said or one not in held[kind]})
        if said != held[kind]:
            told.append(f"{kind} {', '.join(names)}" if names else f"the order of {kind}")
    return " and ".join(told)


def _known(
    base: Store | None, folder: Folder, samples: pa.Table, findings: pa.Table, broken: frozenset[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Keys that the published version stored, and keys that it rejected, from raw files that have not changed since."""
    if base is None or (base.manifest["conversion"], base.manifest["checks"]) != (CONVERSION, checks_of(folder.source)):
        return frozenset(), frozenset()
    digests = {key: held.digest for key, held in folder.sums.items()}
    rows = samples.select(["key", "digest", "part"]).to_pylist()
    kept = {row["key"] for row in rows if digests.get(row["key"]) == row["digest"] and row["part"] not in broken}
    found = findings.select(["key", "digest", "rejected"]).to_pylist()
    rejected = {row["key"] for row in found if row["rejected"] and row["digest"] and digests.get(row["key"]) == row["digest"]}
    return frozenset(kept), frozenset(rejected)
