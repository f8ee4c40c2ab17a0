"""A source of one's own: what a file outside of this package says of a raw folder, so that it can be ingested like any other.

A ``Form`` is all there is to write; ``docs/new-source.md`` goes through one. What it says of its fields and labels goes into the
store, which is read without it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.fields import SOURCES, Field, fields_of
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.schemas.tables import Finding

Arrays = MutableMapping[str, NDArray[Any]]
Decode = Callable[[bytes, Arrays, dict[str, Any]], None]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z", re.ASCII)
_TAKEN: Final = ("frustum", "parts", "runs", "tables", "versions")  # folders of a store
_AXES: Final = ("row", "column", "channel", "x", "y", "z", "to", "from", "world", "camera", "scale")
_DTYPES: Final = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
_SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")
_LARGEST_GRID: Final = 512
_LARGEST_ID: Final = 254  # 255 is of pixels that teach nothing
_BUILT_IN: Final = {field.name: field for source in ("matterport", "front3d") for field in fields_of(source)}


@dataclass(frozen=True)
class RawFile:
    """One kind of raw file.

    Attributes:
        kind: its name, as in the findings and samples tables.
        fields: the fields it gives.
        decode: (bytes, arrays to fill, facts to add to) -> None; raises SourceError.
        required: False where a view may lack it.
        volume: True where its size grows with the grid.
    """

    kind: str
    fields: tuple[str, ...]
    decode: Decode
    required: bool = True
    volume: bool = False


@dataclass(frozen=True)
class Listed:
    """A sample that the split lists name.

    Attributes:
        key: ``scene/image``.
        splits: every list that names it, train first.
        rgb_path: the list's own path of the colour image, or "".
        size: (height, width) of the image by the list, or None.
    """

    key: str
    splits: tuple[str, ...]
    rgb_path: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Form:
    """What a raw folder of one's own looks like, and how its files become the arrays of samples.

    Attributes:
        name: of the source, in stores and tables; none of ``schemas.fields.SOURCES``.
        fields: what a sample holds, in the order it is stored. A field of a name that the built-in rooms have too means the same: its
            axes, dtype and unit are the same, and the checks that speak of it apply.
        files: the kinds of raw files. The one called "rgb" gives the field "rgb", whose first image tells the size of all.
        list_samples: raw folder -> its samples, in any order, with their splits.
        paths: key -> {kind: path inside the raw folder}, for every kind. Samples may share a file.
        labels: names and colours of the ids in ``semantic_2d`` and ``semantic_3d``; 0 is void.
        checks: sample -> findings; run on samples that have all their required fields.
        grid: voxels a side of its volumes; 0 where it has none.
        version: raise it when a module that the file imports changes what comes out: only the file itself is noticed.

    Raises:
        ConfigError: something does not fit; the message says what.
    """

    name: str
    fields: tuple[Field, ...]
    files: tuple[RawFile, ...]
    list_samples: Callable[[Place], Iterable[Listed]]
    paths: Callable[[SampleKey], Mapping[str, str]]
    labels: tuple[Label, ...] = LABELS
    checks: tuple[Callable[[Sample], Iterable[Finding]], ...] = ()
    grid: int = 0
    version: str = "1"

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        _refuse(
            not _is_name(self.name) or self.name in SOURCES, f"{where}: a name is a-z, 0-9 and _, and none of {', '.join(SOURCES)}"
        )
        _refuse(
            not re.fullmatch(r"[\w.\-]{1,64}", self.version), f"{where}: version {self.version!r} is not letters, digits, _, - or ."
        )
        check_fields(self.fields, self.grid, where)
        check_labels(self.labels, where)
        self._check_files(where)

    def _check_files(self, where: str) -> None:
        kinds = [file.kind for file in self.files]
        _refuse(
            len({*kinds}) < len(kinds) or "rgb" not in kinds,
            f"{where}: files of the kinds {kinds}: each once, and one called 'rgb'",
        )
        known = {field.name for field in self.fields}
        given = {name for file in self.files for name in file.fields}
        _refuse(bool(given - known), f"{where}: files give {sorted(given - known)}, which are no fields of it")
        strange = [f"{field.name} from {field.origin!r}" for field in self.fields if field.origin.partition(":")[0] not in kinds]
        _refuse(
            bool(strange),
            f"{where}: {', '.join(strange)}: the origin of a field begins with the kind of a file, {', '.join(kinds)}",
        )
        sure = {name for file in self.files if file.required for name in file.fields}
        lacking = [field.name for field in self.fields if field.name not in (sure if field.required else given)]
        _refuse(bool(lacking), f"{where}: no required file gives {lacking}; name one, or give the field required=False")
        _refuse(
            "rgb" not in next(file.fields for file in self.files if file.kind == "rgb"), f"{where}: the file 'rgb' gives no 'rgb'"
        )


def fill(target: NDArray[Any], values: Any) -> None:
    """Copy what a file holds into an array of a sample: all of it as it is, or none.

    Args:
        target: the array of one field of a sample, in the field's shape and dtype; written in place.
        values: what the file holds: the same shape, any dtype.

    Raises:
        SourceError: another shape, or a value that the array's dtype cannot hold.

    >>> target = np.zeros(2, np.uint8)
    >>> fill(target, np.array([1, 300]))
    Traceback (most recent call last):
    scenemill.schemas.errors.SourceError: range: found 1 to 300; expected 0 to 255
    """
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise SourceError("dtype", f"values of type {found.dtype}", "numbers")
    if found.shape != target.shape:
        raise SourceError("shape", str(found.shape)[:80], str(target.shape))
    if target.dtype.kind in "iu" and found.size:
        _check_whole(found, np.iinfo(target.dtype))
    if target.dtype.kind == "b" and not np.isin(found, (0, 1)).all():
        raise SourceError("range", "values other than 0 and 1", "0 or 1")
    target[...] = found


def _check_whole(found: NDArray[Any], limits: "np.iinfo[Any]") -> None:
    low, high = found.min(), found.max()
    if not (low >= limits.min and high <= limits.max):
        raise SourceError("range", f"{low:g} to {high:g}", f"{limits.min} to {limits.max}")
    if found.dtype.kind == "f" and not (found == np.rint(found)).all():
        raise SourceError("range", "values with fractions", "whole numbers")


def check_fields(fields: Sequence[Field], grid: int, where: str) -> None:
    """Refuse fields that a store cannot hold, or that mean something else under a name that is known.

    Raises:
        ConfigError: such a field.
    """
    names = [field.name for field in fields]
    _refuse(not names or len({*names}) < len(names), f"{where}: fields {names}: at least one, each once")
    _refuse(not 0 <= grid <= _LARGEST_GRID, f"{where}: grid {grid}; give 0, or up to {_LARGEST_GRID} voxels a side")
    for field in fields:
        place = f"{where}, field {field.name!r}"
        _refuse(
            not _is_name(field.name) or field.name in _TAKEN, f"{place}: a name is a-z, 0-9 and _, and none of {', '.join(_TAKEN)}"
        )
        known = bool(field.axes) and len({*field.axes}) == len(field.axes) and {*field.axes} <= {*_AXES}
        _refuse(not known, f"{place}: axes {field.axes}; at least one of {', '.join(_AXES)}, each once")
        cut = {*field.axes} & {*"xyz"}
        _refuse(
            bool(cut) and (not field.is_volume or not grid), f"{place}: a volume has the axes x, y, z alone, and its source a grid"
        )
        _refuse(field.dtype not in _DTYPES, f"{place}: dtype {field.dtype!r}; use one of {', '.join(_DTYPES)}")
        _refuse(not _can_hold(field), f"{place}: fill {field.fill!r} is no {field.dtype}")
        level, shuffle = field.codec
        _refuse(
            not 0 <= level <= 9 or shuffle not in _SHUFFLES,
            f"{place}: codec {field.codec}; give (0 to 9, {' or '.join(_SHUFFLES)})",
        )
        _check_meaning(field, place)


def _check_meaning(field: Field, place: str) -> None:
    same = _BUILT_IN.get(field.name)
    if same is not None:
        wanted, found = ((one.axes, one.dtype, one.unit) for one in (same, field))
        _refuse(found != wanted, f"{place}: {found}; of this name it is {wanted}: give it that, or another name")


def _can_hold(field: Field) -> bool:
    kind = np.dtype(field.dtype).kind
    if kind == "f":
        return isinstance(field.fill, float | int) and not isinstance(field.fill, bool)
    if kind == "b":
        return isinstance(field.fill, bool)
    limits = np.iinfo(field.dtype)
    return type(field.fill) is int and limits.min <= field.fill <= limits.max


def check_labels(labels: Sequence[Label], where: str) -> None:
    """Refuse labels that cannot be told apart, or that no class id can have.

    Raises:
        ConfigError: such a label.
    """
    ids, names = [label.id for label in labels], [label.name for label in labels]
    fit = all(type(number) is int and 0 <= number <= _LARGEST_ID for number in ids)
    _refuse(not fit or len({*ids}) < len(ids), f"{where}: labels have the ids {ids[:32]}; give 0 to {_LARGEST_ID}, each once")
    told = all(isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable() for name in names)
    _refuse(
        not told or len({*names}) < len(names),
        f"{where}: labels are named {names[:32]}; give texts of 1 to 64 characters, each once",
    )
    colored = all(len(label.color) == 3 and all(type(c) is int and 0 <= c <= 255 for c in label.color) for label in labels)
    _refuse(not colored, f"{where}: a colour of a label is (red, green, blue), each 0 to 255")


def to_json(fields: Sequence[Field], labels: Sequence[Label]) -> dict[str, Any]:
    """Fields and labels of one's own as they stand in a store's manifest."""
    listed = [
        {**asdict(field), "axes": list(field.axes), "codec": list(field.codec), "fill": _told(field.fill)} for field in fields
    ]
    return {"fields": listed, "labels": [{**asdict(label), "color": list(label.color)} for label in labels]}


def from_json(held: Mapping[str, Any], grid: int) -> tuple[tuple[Field, ...], tuple[Label, ...]]:
    """Fields and labels from a manifest, which anyone may have written.

    Raises:
        ConfigError, TypeError, ValueError, LookupError: it holds something else.
    """
    fields = tuple(
        Field(**{**one, "axes": tuple(one["axes"]), "codec": tuple(one["codec"]), "fill": _read_fill(one["fill"])})
        for one in held["fields"]
    )
    labels = tuple(Label(**{**one, "color": tuple(one["color"])}) for one in held["labels"])
    check_fields(fields, grid, "manifest")
    check_labels(labels, "manifest")
    return fields, labels


def _told(fill: float | int | bool) -> Any:
    """A fill value as JSON takes it; numbers that are none, as Zarr writes them."""
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(fill), fill)


def _read_fill(held: Any) -> Any:
    return float(held) if isinstance(held, str) else held


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_NAME.match(name))


def _refuse(wrong: bool, told: str) -> None:
    if wrong:
        raise ConfigError(told)
