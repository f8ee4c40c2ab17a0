"""What a store looks like on disk, as pure functions: paths, Zarr documents, and the settings that decide its bytes.

zarr.json              the group, its arrays' shapes, and the manifest: what counts. Publishing swaps this one file
versions/ID.json       the same document for every version
FIELD/zarr.json        the array for readers that open it alone
FIELD/c/SLOT/0/0/0     one shard: the field of every sample of one part
frustum/               one more array, without a sample axis: the frustum that all samples of a source in the 3D-Front form share
parts/ID/              receipt.json, samples.parquet, findings.parquet of one part
tables/                samples and findings of a version, named by their content
runs/RUN/              what a run did: run.parquet, validation.json, data docs
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scenemill.schemas import forms
from scenemill.schemas.errors import ConfigError, WrongVersion
from scenemill.schemas.fields import VIEWS, Field, fields_of, raw_orientation
from scenemill.schemas.labels import LABELS, Label
from scenemill.transforms.geometry import voxel_size_m
from scenemill.transforms.precision import Storage, storage_of

FORMAT: Final = "scenemill-store/1"
CONVERSION: Final = "1"
"""Raised whenever conversion may give other values or bytes: samples are then converted anew."""

CHUNK: Final = 64
_BLOCK_BYTE: Final = 1 << 19  # of blosc: larger than a shuffled plane needs, smaller than the cache
ROOT: Final = "zarr.json"
FRUSTUM: Final = "frustum"
FRUSTUM_CHUNK: Final = "frustum/c/0/0/0"


@dataclass(frozen=True)
class Layout:
    """The settings that decide a store's form; fixed when it is first published.

    Attributes:
        source: whose fields it holds.
        grid: voxels a side; 0 where the source has no volumes.
        image: (height, width) in pixels.
        samples_per_part: rows of one shard.
        precision: of distances.
        frustum: SHA-256 of the stored frustum that serves all samples; "" where each carries its own.
        own_fields, own_labels: of a source of one's own; () where the source is built in.
    """

    source: str
    grid: int
    image: tuple[int, int]
    samples_per_part: int
    precision: str
    frustum: str = ""
    own_fields: tuple[Field, ...] = ()
    own_labels: tuple[Label, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The field table's rows for this store."""
        return self.own_fields or fields_of(self.source)

    @property
    def labels(self) -> tuple[Label, ...]:
        """What class ids mean; () where nothing does: views of objects."""
        if self.own_fields:
            return self.own_labels
        return () if self.source == VIEWS else LABELS

    def check_built_in_classes(self, where: str) -> None:
        """Refuse classes of one's own, of which neither the networks nor the metric tables know anything.

        Raises:
            ConfigError: it has such.
        """
        if self.own_fields and self.own_labels != LABELS:
            raise ConfigError(
                f"store {where}, of the source {self.source!r}, has no built-in classes: those alone are trained, evaluated and scored; "
                "let its form translate its ids to them (docs/new-source.md)"
            )

    def storage(self, field: Field) -> Storage:
        """How a field's values are stored."""
        return storage_of(field, self.precision)

    def chunk(self, field: Field) -> tuple[int, ...]:
        """Inner chunk of one sample: blocks of a volume, or the whole of anything else."""
        shape = field.shape(self.grid, self.image)
        return tuple(min(CHUNK, size) for size in shape) if field.is_volume else shape

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        names = ("source", "grid", "samples_per_part", "precision", "frustum")
        held = {name: getattr(self, name) for name in names}
        own = {"own": forms.to_json(self.own_fields, self.own_labels)} if self.own_fields else {}
        return {**held, "image": list(self.image), **own}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "Layout":
        """The layout of a published store.

        Raises:
            WrongVersion: another format.
        """
        if manifest.get("format") != FORMAT:
            raise WrongVersion(
                f"store format {manifest.get('format')!r}; this scenemill reads {FORMAT!r}: ingest the raw folder into a new store"
            )
        held = manifest["layout"]
        own = forms.from_json(held["own"], held["grid"]) if "own" in held else ((), ())
        sizes = held["grid"], tuple(held["image"]), held["samples_per_part"]
        return cls(held["source"], *sizes, held["precision"], held["frustum"], *own)


def shard_path(field: Field, slot: int) -> str:
    """Path of a part's shard of one field, below the store."""
    return "/".join([field.name, "c", str(slot), *("0" for _ in field.axes)])


def array_document(layout: Layout, field: Field, rows: int) -> dict[str, Any]:
    """The Zarr v3 metadata of one array of ``rows`` samples."""
    storage = layout.storage(field)
    shape = field.shape(layout.grid, layout.image)
    attributes: dict[str, Any] = {"unit": field.unit, "meaning": field.meaning, "source": field.origin}
    if storage.scale is not None:
        attributes.update(scale_factor=storage.scale, add_offset=0.0)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *shape],
        "data_type": storage.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.samples_per_part, *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if isinstance(storage.fill, float) and math.isnan(storage.fill) else storage.fill,
        "codecs": [{"name": "sharding_indexed", "configuration": _sharding(layout, field, storage)}],
        "attributes": attributes,
        "dimension_names": ["sample", *field.axes],
        "storage_transformers": [],
    }


def frustum_document(layout: Layout) -> dict[str, Any]:
    """The Zarr v3 metadata of the frustum: (X, Y, Z) bool, True inside, in one chunk."""
    shape = [layout.grid] * 3
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "bool",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False,
        "codecs": [{"name": "bytes"}, {"name": "blosc", "configuration": FRUSTUM_BLOSC}, {"name": "crc32c"}],
        "attributes": {
            "unit": "",
            "meaning": "True where the voxel lies inside the frustum of every view",
            "source": "meta/frustum_mask.npz",
        },
        "dimension_names": ["x", "y", "z"],
        "storage_transformers": [],
    }


FRUSTUM_BLOSC: Final = {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": _BLOCK_BYTE}


def _sharding(layout: Layout, field: Field, storage: Storage) -> dict[str, Any]:
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "chunk_shape": [1, *layout.chunk(field)],
        "codecs": [
            {"name": "bytes"} if item_size(storage.dtype) == 1 else endian,
            {"name": "blosc", "configuration": blosc_settings(field, storage)},
            {"name": "crc32c"},
        ],
        "index_codecs": [endian, {"name": "crc32c"}],
        "index_location": "end",
    }


def blosc_settings(field: Field, storage: Storage) -> dict[str, Any]:
    """The compressor of one field, as Zarr writes it down."""
    level, shuffle = field.codec
    return {"cname": "zstd", "clevel": level, "shuffle": shuffle, "typesize": item_size(storage.dtype), "blocksize": _BLOCK_BYTE}


def item_size(dtype: str) -> int:
    """Bytes of one value.

    >>> item_size("float32"), item_size("bool")
    (4, 1)
    """
    return 1 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def group_document(layout: Layout, rows: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The root ``zarr.json`` of one version: the group, every array's metadata, and the manifest among the attributes."""
    arrays = {field.name: array_document(layout, field, rows) for field in layout.fields}
    if layout.frustum:
        arrays[FRUSTUM] = frustum_document(layout)
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"scenemill": {"version": version_id(manifest), **manifest}},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }


def rows_of_manifest(layout: Layout, manifest: Mapping[str, Any]) -> int:
    """Length of the sample axis: up to the last row that a part of the version planned."""
    return max((part["slot"] * layout.samples_per_part + part["planned"] for part in manifest["parts"]), default=0)


def describe(layout: Layout) -> dict[str, Any]:
    """What a reader must know of the values: the constant part of the manifest."""
    held = {"format": FORMAT, "conversion": CONVERSION, "layout": layout.to_json()}
    if layout.source == VIEWS:
        return {**held, "voxel_m": None, "orientation": "images as rendered; cameras see -z, x right, y up", "labels": []}
    flipped = raw_orientation(layout.source)
    return {
        **held,
        "voxel_m": voxel_size_m(layout.grid) if any(field.name == "geometry" for field in layout.fields) else None,
        "orientation": "image-aligned: x to the image's right, y down, z with depth",
        "raw_orientation": f"flip axes {flipped[0]} and {flipped[1]} of a sample's volume" if flipped else "as stored",
        "labels": [
            {"id": label.id, "name": label.name, "isthing": int(label.thing), "color": list(label.color)} for label in layout.labels
        ],
    }


def to_bytes(document: Any) -> bytes:
    """A JSON document in its one form: sorted keys, no spaces that could differ."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def version_id(manifest: Mapping[str, Any]) -> str:
    """A version's id: the checksum of its manifest."""
    return hash_of({name: value for name, value in manifest.items() if name != "version"})


def hash_of(document: Any) -> str:
    """Sixteen hex digits that name a JSON document.

    >>> hash_of({"a": 1})
    'e346432021b04179'
    """
    return hashlib.sha256(to_bytes(document)).hexdigest()[:16]
