"""Raw folders as samples: one table of file kinds per form, one way to list and read them all.

A built-in source is a module with ``FILES`` (a ``RawFile`` per kind of file), ``paths(key)`` and ``image_of_rgb(name)``; everything
odd about it ends there. A source of one's own is a ``Form`` in a file outside of this package (``own_forms.py``).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas import forms
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.fields import VIEWS, Field, fields_of, is_reference
from scenemill.schemas.forms import Form
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.schemas.tables import Finding
from scenemill.transforms import folders, images, npz, own_forms, view_folders

_FORMS: Final = {
    "front3d": "front3d",
    "synthetic_hospital": "front3d",
    "synthetic_warehouse": "front3d",
    "matterport": "matterport3d",
    VIEWS: "views",
}
_IMAGE_LIMIT_BYTE: Final = 1 << 26
_PROBES: Final = 9
_NO_GRID: Final = -1

Arrays = forms.Arrays
RawFile = forms.RawFile
Listed = forms.Listed


@dataclass(frozen=True)
class Source:
    """A raw folder of one form.

    Attributes:
        name: one of ``schemas.fields.SOURCES``, or the name of a form of one's own.
        root: the folder above ``data/``, here or in an object store; of views, the folder of a scene or of scenes.
        grid: voxels a side of its volumes; 0 where it has none.
        image: (height, width) of its images in pixels.
        lone_scene: the scene whose files lie in ``root`` itself; "" where every scene has a folder.
        reference, digest: of the code of a form of one's own, and its checksum; "" for a built-in source.
    """

    name: str
    root: Place
    grid: int
    image: tuple[int, int]
    lone_scene: str = ""
    reference: str = ""
    digest: str = ""

    @property
    def own(self) -> Form | None:
        """The form of one's own; None for a built-in source."""
        return own_forms.load_form(self.reference, self.digest) if self.reference else None

    @property
    def code(self) -> Path | None:
        """The file of a form of one's own, that every worker needs; None where it is installed, or the source built in."""
        place = Path(self.reference.rpartition(":")[0])
        return place if place.suffix == ".py" else None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The field table's rows for this source."""
        return self.own.fields if self.own else fields_of(self.name)

    @property
    def files(self) -> tuple[RawFile, ...]:
        """Its kinds of raw files."""
        if self.own:
            return self.own.files
        files: tuple[RawFile, ...] = _form(self.name).FILES
        return files

    @property
    def telling_files(self) -> tuple[str, ...]:
        """Kinds that make two views the same view, whatever else lies beside them."""
        return ("rgb",) if self.name == VIEWS or self.reference else ("rgb", "depth", "segmap")

    def new_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of one sample, to be filled again and again: fresh memory would cost more than decoding into it."""
        return {field.name: np.empty(field.shape(self.grid, self.image), field.dtype) for field in self.fields}


def _form(name: str) -> Any:
    return import_module(f"scenemill.transforms.{_FORMS[name]}")


def find_root(name: str, folder: Place) -> Place:
    """The raw folder of a source: the one above ``data/``, or that of one or more scenes of views.

    Raises:
        ConfigError: it is not one.
    """
    if is_reference(name):
        if not folder.is_dir():
            raise ConfigError(f"input {folder}: no such folder; give the one that {name} lists samples of")
        return folder.resolve() if isinstance(folder, Path) else folder
    return view_folders.find_root(folder) if name == VIEWS else folders.find_root(folder)


def list_samples(name: str, root: Place, splits: Sequence[str] = ()) -> tuple[list[Listed], dict[str, list[Finding]]]:
    """What the split lists name, sorted by key, every key once; of views without a list, all that lie in the folder, as "train".

    Args:
        name: of the source.
        root: the raw folder.
        splits: names, or ``name=path``; empty for every list in ``root``.

    Returns:
        The samples, and findings by key. A line that names no sample has its place in the list (``train.json[3]``) as its key;
        "" is the key of what concerns the whole folder.

    Raises:
        ConfigError: no list, or an unreadable one.
    """
    if is_reference(name):
        own, problems = own_forms.list_own(own_forms.find_own(name), root, splits)
        _tell_overlaps(own, problems)
        return [own[key] for key in sorted(own)], problems
    found: dict[str, Listed] = {}
    findings: dict[str, list[Finding]] = {}
    paths = _form(name).paths
    lists = folders.find_lists(root, splits, needed=name != VIEWS)
    if name == VIEWS:
        for place, finding in view_folders.check_folders(root):
            findings.setdefault(_printable(place), []).append(finding)
        if not lists:
            return _every_view(root, findings), findings
    for split, path in lists.items():
        for entry in folders.read_list(path):
            problem = entry.problem or _path_problem(paths, entry.key)
            if problem or entry.key is None:
                findings.setdefault(entry.where, []).append(Finding("list", "", "error", problem, "ids of an existing view"))
                continue
            key = str(entry.key)
            known = found.get(key, Listed(key, (), entry.rgb_path, entry.size))
            if split in known.splits:
                findings.setdefault(key, []).append(Finding("list", "", "warning", f"twice in the list {split!r}", "once"))
                continue
            found[key] = replace(known, splits=(*known.splits, split))
    _tell_overlaps(found, findings)
    return [found[key] for key in sorted(found)], findings


def _tell_overlaps(found: Mapping[str, Listed], findings: dict[str, list[Finding]]) -> None:
    for key, listed in found.items():
        if len(listed.splits) > 1:
            observed = f"in the lists {', '.join(listed.splits)}"
            findings.setdefault(key, []).append(Finding("split_overlap", "", "warning", observed, "one split per view"))


def _every_view(root: Place, findings: dict[str, list[Finding]]) -> list[Listed]:
    """The views of a folder without split lists, sorted by key; adds to the findings."""
    expected = "just that, or a train.txt and a val.txt with SCENE/NUMBER in every line, to hold views out"
    findings.setdefault("", []).append(Finding("list", "", "info", 'no split list: every view is in "train"', expected))
    listed = []
    for name in find_views(VIEWS, root):
        try:
            listed.append(Listed(str(SampleKey.parse(name)), ("train",)))
        except ConfigError as error:
            findings.setdefault(name, []).append(Finding("list", "", "error", str(error), "another name of the folder"))
    return listed


def _path_problem(paths: Callable[[SampleKey], Mapping[str, str]], key: SampleKey | None) -> str:
    try:
        if key is not None:
            paths(key)
        return ""
    except SourceError as error:
        return str(error)


def find_unlisted(name: str, root: Place, listed: Sequence[Listed]) -> Iterator[str]:
    """Keys of views that lie in the folder and stand in no list, sorted; of a form of one's own nobody knows."""
    if is_reference(name):
        return iter(())
    known = {sample.key for sample in listed}
    return (key for key in find_views(name, root) if key not in known)


def find_views(name: str, root: Place) -> Iterator[str]:
    """Keys of all views that lie in the folder, by their colour images, sorted within scenes."""
    image_of_rgb = _form(name).image_of_rgb
    for scene, folder in _scene_folders(name, root).items():
        yield from sorted(f"{_printable(scene)}/{image}" for path in folder.iterdir() if (image := image_of_rgb(path.name)))


def _scene_folders(name: str, root: Place) -> dict[str, Place]:
    if name == VIEWS:
        return view_folders.scene_folders(root)
    held: list[Place] = sorted((root / "data").iterdir())
    return {scene.name: scene for scene in held if scene.is_dir()}


def _printable(name: str) -> str:
    """A file name as text that any table can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def open_source(
    name: str, root: Place, listed: Sequence[Listed], grid: int | None = None, image: tuple[int, int] | None = None
) -> Source:
    """The source, with the sizes that most of a few probed views have, unless they are given.

    Raises:
        ConfigError: no probed view can be read.
    """
    source = _unsized(name, root)
    source = replace(source, grid=source.own.grid if source.own else grid or 0, image=image or (0, 0))
    if grid is not None and image is not None:
        return source
    step = max(1, len(listed) // _PROBES)
    grids: Counter[int] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for sample in listed[::step][:_PROBES]:
        try:
            grids[_probe_grid(source, sample)] += 1
            sizes[images.probe_size(folders.read_file(root, raw_files(source, sample)["rgb"], _IMAGE_LIMIT_BYTE))] += 1
        except SourceError:
            continue  # the reader will find and tell it; here another view speaks for the folder
    grids.pop(_NO_GRID, None)
    if not grids or not sizes:
        tried = min(len(listed), _PROBES)
        raise ConfigError(f"input {root}: no readable view among {tried} tried; expected {_what_a_view_is(source)}")
    return replace(source, grid=source.grid or grids.most_common(1)[0][0], image=image or sizes.most_common(1)[0][0])


def _what_a_view_is(source: Source) -> str:
    if source.own:
        return f"colour images, PNG or JPEG, where {source.reference} says"
    return "<i>_rgb.png" if source.name == VIEWS else f"data/<scene>/ as {source.name} has it"


def _unsized(name: str, root: Place) -> Source:
    if is_reference(name):
        own = own_forms.find_own(name)
        return Source(own.form.name, root, 0, (0, 0), "", own.reference, own.digest)
    return Source(name, root, 0, (0, 0), root.name if name == VIEWS and view_folders.holds_views(root) else "")


def _probe_grid(source: Source, listed: Listed) -> int:
    """Voxels a side of a view's volumes; 0 where its source has none, ``_NO_GRID`` where they are no cubes."""
    if source.own:
        return source.own.grid
    if not any(file.volume for file in source.files):
        return 0
    shape = npz.probe_shape(folders.read_file(source.root, raw_files(source, listed)["geometry"], _IMAGE_LIMIT_BYTE), "data")
    return shape[0] if len(shape) == 3 and len(set(shape)) == 1 and 1 < shape[0] <= 512 else _NO_GRID


def raw_files(source: Source, listed: Listed) -> dict[str, str]:
    """Kind -> path inside the root, for every kind of file the view may have."""
    if source.own:
        return own_forms.paths_of(source.own, SampleKey.parse(listed.key))
    paths: dict[str, str] = dict(_form(source.name).paths(SampleKey.parse(listed.key)))
    if source.lone_scene:
        paths = {kind: path.removeprefix(f"{source.lone_scene}/") for kind, path in paths.items()}
    if listed.rgb_path:
        paths["rgb"] = _inside(source.root, listed.rgb_path)
    return paths


def _inside(root: Place, path: str) -> str:
    if not isinstance(root, Path):
        return path.removeprefix(f"{root}/")
    return str(Path(path).relative_to(root)) if Path(path).is_absolute() and Path(path).is_relative_to(root) else path


def read_bytes(source: Source, listed: Listed, file: RawFile) -> bytes | None:
    """Bytes of one raw file of a view; None where an optional one is absent.

    Raises:
        SourceError: a required one is missing, or any is unusable.
    """
    limit = _IMAGE_LIMIT_BYTE + (16 * source.grid**3 if file.volume else 0)
    try:
        return folders.read_file(source.root, raw_files(source, listed)[file.kind], limit)
    except SourceError as error:
        if not file.required and error.check == "presence" and error.observed == "no such file":
            return None
        raise


def read_sample(source: Source, listed: Listed, arrays: Arrays | None = None) -> tuple[Sample, list[Finding]]:
    """Read one view into its final arrays, image-aligned; every file that cannot be read becomes a finding.

    Args:
        source: the raw folder.
        listed: the view.
        arrays: arrays to fill, from ``Source.new_arrays``; the sample then lives until they are filled again.

    Returns:
        The sample (with the fields that could be read, and the facts known from reading) and the findings.
    """
    buffers = source.new_arrays() if arrays is None else arrays
    read: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    files: list[dict[str, Any]] = []
    findings: list[Finding] = []
    sums: dict[str, str] = {}
    paths = raw_files(source, listed)
    for file in source.files:
        try:
            data = read_bytes(source, listed, file)
            if data is None:
                continue
            sums[file.kind] = folders.sha256(data)
            files.append(
                {
                    "kind": file.kind,
                    "path": paths[file.kind],
                    "size_byte": len(data),
                    "sha256": sums[file.kind],
                    "fields": file.fields,
                }
            )
            file.decode(data, buffers, facts)
        except SourceError as error:
            sums.setdefault(file.kind, "unreadable")
            findings.append(Finding(error.check, file.kind, "error", error.observed, error.expected))
            continue
        read.update({name: buffers[name] for name in file.fields})
    for field in source.fields:
        if field.origin == "constant" and not source.own:
            buffers[field.name][...] = _form(source.name).constant(field.name, source.image)
            read[field.name] = buffers[field.name]
    facts.update(files=files, digest=digest_of(sums), raw_byte=sum(file["size_byte"] for file in files))
    return Sample(listed.key, read, facts), findings


def digest_of(sums: Mapping[str, str]) -> str:
    """One checksum over the checksums of a view's raw files, kind by kind."""
    text = "\n".join(f"{kind} {sums[kind]}" for kind in sorted(sums))
    return hashlib.sha256(text.encode()).hexdigest()
