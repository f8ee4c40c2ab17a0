"""A store as a raw folder again, in the public layout of its source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import SOURCES, VIEWS
from scenemill.schemas.sample import SampleKey
from scenemill.transforms.folders import split_rank
from scenemill.transforms.raw_export import write_raw_sample
from scenemill.transforms.rawfiles import write_lists, write_mask
from scenemill.transforms.store import Store
from scenemill.transforms.whole_folders import whole_folder


@dataclass(frozen=True)
class RawExport:
    """What was written.

    Attributes:
        out: the folder.
        version: of the store.
        source: whose layout.
        samples, files: how many.
        size_byte: of all files together.
        splits: number of samples of each list.
        inexact: kinds of file whose arrays do not come back to the bit, and the fields that the store holds in less precision.
    """

    out: str
    version: str
    source: str
    samples: int
    files: int
    size_byte: int
    splits: dict[str, int]
    inexact: tuple[str, ...]


def export_raw(store: Store, out: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> RawExport:
    """Write the samples and split lists of a store as a raw folder, whole or not at all; ingested, it gives the same arrays.

    Args:
        store: of a built-in source.
        out: a new or empty folder.
        on_progress: told how many samples are done, of how many.

    Raises:
        ConfigError: a source of one's own, no sample, or the folder has something in it.
        Corrupt: the store is damaged.
    """
    source = store.layout.source
    if source not in SOURCES or not len(store):
        why = f"source {source!r} has a form of its own, which only reads" if source not in SOURCES else "no sample in it"
        raise ConfigError(f"store {store.root}: {why}; a raw folder is written from samples of {', '.join(SOURCES)}")
    inexact: set[str] = set() if store.layout.precision == "float32" else {"geometry"}
    with whole_folder(out) as folder:
        for number, key in enumerate(store.keys):
            inexact |= {*write_raw_sample(folder, source, store.read(key))}
            on_progress(number + 1, len(store))
        if store.frustum is not None:
            write_mask(folder, store.frustum)
        splits = _write_lists(store, folder)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return RawExport(str(out), store.version, source, len(store), len(sizes), sum(sizes), splits, tuple(sorted(inexact)))


def _write_lists(store: Store, folder: Path) -> dict[str, int]:
    names = {name for splits in store.samples["splits"].to_pylist() for name in splits}
    keys = {name: store.keys_of(name) for name in sorted(names, key=split_rank)}
    if store.layout.source == VIEWS:
        for name, held in keys.items():
            (folder / f"{name}.txt").write_text("".join(f"{key}\n" for key in held), encoding="utf-8")
    else:
        parsed = {name: [SampleKey.parse(key) for key in held] for name, held in keys.items()}
        write_lists(folder, {name: [(key.scene, key.image) for key in held] for name, held in parsed.items()}, store.layout.image)
    return {name: len(held) for name, held in keys.items()}
