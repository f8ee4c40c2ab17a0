"""What every source promises, as one call: for the tests of a source of one's own.

assert broken_promises("my_source.py:SOURCE", Path("raw"), tmp_path) == []
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.examine import examine
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import SourceError
from scenemill.schemas.forms import RawFile
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.transforms.sources import (
    Listed,
    Source,
    find_root,
    list_samples,
    open_source,
    read_bytes,
    read_sample,
)
from scenemill.transforms.store import open_store

_PATTERNS: Final = (0x00, 0xA5)


def broken_promises(source: str, raw: Path, work: Path) -> list[str]:
    """Hold a source to what the rest of scenemill builds upon, on a small raw folder of good samples.

    Keys are sorted and unique, whatever the order of the files; fields are as in the table and owe nothing to the sample read before;
    damaged files reject their sample and nothing else; no sample is in two splits; a store holds what was read; and two ingests, by
    one worker and by several, give the same version.

    Args:
        source: built in, or ``FILE.py:NAME`` or ``package.module:NAME``.
        raw: the raw folder, with at least two samples; a few are enough. It is only read.
        work: an empty folder, for two stores.

    Returns:
        What does not hold, in words; [] where all does. Stores are made once everything before them holds.

    Raises:
        ConfigError: the source, or the folder, cannot be used at all.
    """
    root = find_root(source, raw)
    listed, findings = list_samples(source, root)
    opened = open_source(source, root, listed)
    told = [*_listing(source, root, listed)]
    told += [
        f"{key or 'the folder'}: {found.check}: {found.observed}"
        for key, some in findings.items()
        for found in some
        if found.severity != "info"
    ]
    for one in listed:
        told += _reading(opened, one)
    if listed:
        told += _damage(opened, listed[0])
    return told or [*_stores(source, raw, work, opened, listed)]


def _listing(source: str, root: Place, listed: list[Listed]) -> Iterator[str]:
    keys = [one.key for one in listed]
    if len(keys) < 2:
        yield f"{len(keys)} samples listed; give a folder with at least two"
    if keys != sorted(set(keys)):
        yield "keys are not sorted and unique"
    if [str(SampleKey.parse(key)) for key in keys] != keys:
        yield "keys are not scene/image"
    if list_samples(source, root)[0] != listed:
        yield "a second listing of the same folder is another"


def _reading(source: Source, listed: Listed) -> Iterator[str]:
    read = [_read_over(source, listed, pattern) for pattern in _PATTERNS]
    if read[0] != read[1]:
        names = [name for name in read[0].arrays if not _same(read[0].arrays, read[1].arrays, name)]
        yield f"{listed.key}: {', '.join(names) or 'its fields'} hold something of the sample read before, or of chance"
    sample, found, _ = examine(source, listed)
    yield from (
        f"{listed.key}: {one.check} of {one.field or 'the sample'}: {one.observed}; expected {one.expected}"
        for one in found
        if one.blocks
    )
    for field in source.fields:
        if field.name not in sample:
            if field.required:
                yield f"{listed.key}: no {field.name}"
            continue
        array, shape = sample[field.name], field.shape(source.grid, source.image)
        if (array.shape, str(array.dtype)) != (shape, field.dtype):
            yield f"{listed.key}: {field.name} is {array.shape} {array.dtype}; by the table {shape} {field.dtype}"


def _read_over(source: Source, listed: Listed, pattern: int) -> Sample:
    """A sample read into arrays that held something else."""
    arrays = source.new_arrays()
    for array in arrays.values():
        array.view(np.uint8)[...] = pattern & (1 if array.dtype == bool else 0xFF)
    return read_sample(source, listed, arrays)[0]


def _same(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], name: str) -> bool:
    return name in other and np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f")


def _damage(source: Source, listed: Listed) -> Iterator[str]:
    """Every kind of file, empty and cut in half: a finding of that kind, and no error that would end a run."""
    for file in source.files:
        data = read_bytes(source, listed, file)
        for name, left in () if data is None else (("empty", b""), ("cut in half", data[: len(data) // 2])):
            yield from (f"{file.kind}, {name}: {told}" for told in _decode(source, file, left))


def _decode(source: Source, file: RawFile, data: bytes) -> Iterator[str]:
    try:
        file.decode(data, source.new_arrays(), {})
    except SourceError:
        return
    except Exception as error:
        yield f"raises {type(error).__name__}: {error}; raise SourceError, so that the sample is rejected"
        return
    yield "is taken for a good file"


def _stores(source: str, raw: Path, work: Path, opened: Source, listed: list[Listed]) -> Iterator[str]:
    config = IngestConfig(source, raw, work / "one", samples_per_part=2)
    outcome = ingest(config)
    again = ingest(config)
    other = ingest(replace(config, output=work / "other", workers=2), runner=RunnerConfig(threads=True))
    if again.outcome != "unchanged":
        yield f"a second ingest of the same folder is {again.outcome}, not unchanged: a digest or key depends on chance or time"
    if other.version != outcome.version:
        yield "an ingest by several workers gives another version: values depend on chance, time or order"
    for row in outcome.findings.to_pylist():
        if row["check"] in ("split_overlap", "duplicate"):
            yield f"{row['key']}: {row['check']}: {row['observed']}"
    splits = Counter(name for one in listed for name in {*one.splits})
    if sum(splits.values()) != len(listed):
        yield "a sample is in two splits"
    store = open_store(work / "one")
    for one in listed:
        if one.key in store and store.read(one.key) != read_sample(opened, one)[0]:
            yield f"{one.key}: the store holds other values than were read"
