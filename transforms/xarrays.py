"""A store as an ``xarray.Dataset`` that reads when it is asked. The one home of xarray; only ``Store.to_xarray`` imports it.

Its samples are those of the samples table, in the order of the keys: rows that no manifest names are not there. Values come from
``Store.read``, lengths and checksums of files included; of a volume only the chunks that a slice touches.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from scenemill.schemas.fields import Field
from scenemill.transforms.reader import Box

if TYPE_CHECKING:
    from scenemill.transforms.store import Store

SAMPLE: Final = "sample"
_COUNTED: Final = {"x": "voxel", "y": "voxel", "z": "voxel", "row": "pixel", "column": "pixel"}
"""Axes that count something, and what."""


class StoredField(BackendArray):  # type: ignore[misc]  # xarray is read without its types
    """One field of all samples, read by sample and by box.

    Args:
        store: where it is.
        field: a row of the field table.

    Attributes:
        shape: (samples, ...).
        dtype: of the field table.
    """

    def __init__(self, store: "Store", field: Field) -> None:
        self._store = store
        self._field = field
        self.shape = (len(store), *field.shape(store.layout.grid, store.layout.image))
        self.dtype = np.dtype(field.dtype)

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """What whole numbers, slices or lists of whole numbers select, each axis for itself."""
        places = [np.arange(size)[one] for one, size in zip(key, self.shape, strict=True)]
        whole = tuple(0 if chosen.ndim == 0 else slice(None) for chosen in places)
        lists = [np.atleast_1d(chosen) for chosen in places]
        found = np.empty([len(chosen) for chosen in lists], self.dtype)
        if found.size:
            box, within = self._box(lists[1:])
            for number, place in enumerate(lists[0].tolist()):
                found[number] = self._one(place, box)[within]
        return found[whole]

    def _box(self, lists: list[NDArray[np.int64]]) -> tuple[Box | None, tuple[NDArray[np.int64], ...]]:
        """The smallest box of a volume that holds all places, None for other fields; and the places in it, for an index."""
        if not self._field.is_volume:
            return None, np.ix_(*lists)
        ends = [(int(chosen.min()), int(chosen.max()) + 1) for chosen in lists]
        return (ends[0], ends[1], ends[2]), np.ix_(*(chosen - low for chosen, (low, _) in zip(lists, ends, strict=True)))

    def _one(self, place: int, box: Box | None) -> NDArray[Any]:
        """One sample's array, or a box of it; the fill value where the sample lacks the field."""
        key, name = self._store.keys[place], self._field.name
        if name in self._store.facts(key)["fields"]:
            return self._store.read(key, [name], box=box)[name]
        shape = self.shape[1:] if box is None else [high - low for low, high in box]
        return np.full(shape, self._field.fill, self.dtype)


def to_xarray(store: "Store", chunked: bool | None) -> xarray.Dataset:
    """See ``Store.to_xarray``."""
    variables = {field.name: _variable(store, field) for field in store.layout.fields}
    told = {
        "version": store.version,
        "source": store.layout.source,
        "precision": store.layout.precision,
        "orientation": store.manifest["orientation"],
        **({"voxel_m": store.manifest["voxel_m"]} if store.manifest["voxel_m"] else {}),
    }
    dataset = xarray.Dataset(variables, {**_axes(store), **_names(store)}, told)
    if chunked is None:
        chunked = find_spec("dask") is not None
    return dataset.chunk({SAMPLE: 1}) if chunked else dataset


def _variable(store: "Store", field: Field) -> xarray.Variable:
    values = indexing.LazilyIndexedArray(StoredField(store, field))
    told = {"units": field.unit, "long_name": field.meaning, "source": field.origin}
    return xarray.Variable((SAMPLE, *field.axes), values, told, encoding={"preferred_chunks": {SAMPLE: 1}})


def _names(store: "Store") -> dict[str, tuple[str, Any]]:
    """What tells samples apart: the key is the index."""
    columns = {name: np.array(store.samples[name].to_pylist(), object) for name in ("key", "scene", "image", "split")}
    return {SAMPLE if name == "key" else name: (SAMPLE, values) for name, values in columns.items()}


def _axes(store: "Store") -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Indices of the centres of voxels and pixels."""
    sizes = {
        axis: size
        for field in store.layout.fields
        for axis, size in zip(field.axes, field.shape(store.layout.grid, store.layout.image), strict=True)
    }
    return {axis: (axis, np.arange(size), {"units": _COUNTED[axis]}) for axis, size in sizes.items() if axis in _COUNTED}
