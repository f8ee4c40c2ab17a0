"""Arrow schemas of the tables that stand beside the arrays: samples, findings, runs. Units are the last word of a column's name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

TABLE_VERSION: Final = "1"
SCORES_VERSION: Final = "1.1"
"""1.1: where in a training a run stands. Tables of version 1 are read as without, and get the columns with the next run."""

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing wrong, or worth knowing, about one sample. Data, not an exception.

    Attributes:
        check: name of the check, as in ``validators/checks.py``.
        field: the field or raw file kind it speaks of; "" for the whole sample.
        severity: "error" rejects the sample; "warning" and "info" are only told.
        observed: what was found, in words.
        expected: what was wanted, in words.
    """

    check: str
    field: str
    severity: Severity
    observed: str
    expected: str

    @property
    def blocks(self) -> bool:
        """True when the finding rejects the sample."""
        return self.severity == "error"


_FILE = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_byte", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("fields", pa.list_(pa.string()), nullable=False),
    ]
)

_CAMPOSE = pa.struct(
    [
        pa.field("blender_matrix", pa.list_(pa.float64())),
        pa.field("blender_location", pa.list_(pa.float64())),
        pa.field("blender_rotation_euler", pa.list_(pa.float64())),
        pa.field("intrinsic", pa.list_(pa.float64())),
        pa.field("fov_x", pa.float64()),
        pa.field("fov_y", pa.float64()),
        pa.field("room_id", pa.int64()),
    ]
)


def _columns(nullable: bool = False, **types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, type_, nullable=nullable) for name, type_ in types.items()]


SAMPLES: Final = pa.schema(
    [
        *_columns(
            key=pa.string(),
            scene=pa.string(),
            image=pa.string(),
            split=pa.string(),
            splits=pa.list_(pa.string()),
            part=pa.string(),
            row=pa.int64(),
            digest=pa.string(),
            fields=pa.list_(pa.string()),
            grid=pa.int32(),
            image_height_pixel=pa.int32(),
            image_width_pixel=pa.int32(),
            intrinsics=pa.list_(pa.float64()),
        ),
        *_columns(nullable=True, world_from_camera=pa.list_(pa.float64()), campose=_CAMPOSE),
        *_columns(
            classes_2d=pa.list_(pa.int32()),
            classes_3d=pa.list_(pa.int32()),
            instances_2d=pa.list_(pa.int32()),
            instances_3d=pa.list_(pa.int32()),
            things_2d=pa.int32(),
            things_3d=pa.int32(),
            depth_min_m=pa.float64(),
            depth_max_m=pa.float64(),
            depth_valid_share=pa.float64(),
            geometry_min_voxel=pa.float64(),
            geometry_max_voxel=pa.float64(),
            geometry_float32_exact=pa.bool_(),
            geometry_error_max_voxel=pa.float64(),
            voxels_observed=pa.int64(),
            voxels_occupied=pa.int64(),
            voxels_labelled=pa.int64(),
            depth_on_surface_share=pa.float64(),
            labels_agree_share=pa.float64(),
            warnings=pa.int32(),
            raw_byte=pa.int64(),
            stored_byte=pa.int64(),
            files=pa.list_(_FILE),
        ),
    ],
    metadata={"scenemill.table": "samples", "scenemill.version": TABLE_VERSION},
)
"""A row per stored sample: where it is, what it holds, and the raw files and fields it came from.

``row`` is the index on the sample axis of every array; ``splits`` names every list that holds the view and ``split`` the first of
them; matrices are flattened row by row; ``digest`` is the SHA-256 over the view's raw files.

Views of objects have no volumes: their ``grid`` is 0, columns that speak of voxels hold 0 or an empty list, and the lengths in
``depth_*_m`` and ``world_from_camera`` are units of their scene. ``intrinsics`` and ``world_from_camera`` say their camera in the
terms of the other sources.
"""

FINDINGS: Final = pa.schema(
    _columns(
        key=pa.string(),
        digest=pa.string(),
        rejected=pa.bool_(),
        check=pa.string(),
        field=pa.string(),
        severity=pa.string(),
        observed=pa.string(),
        expected=pa.string(),
    ),
    metadata={"scenemill.table": "findings", "scenemill.version": TABLE_VERSION},
)
"""A row per finding. ``rejected`` is True when the sample was not stored; ``key`` is "" for a finding about the whole folder."""

RUNS: Final = pa.schema(  # the last five came later: they are empty in rows of older releases
    [
        *_columns(
            run=pa.string(),
            command=pa.string(),
            source=pa.string(),
            input=pa.string(),
            outcome=pa.string(),
            started=pa.timestamp("us", tz="UTC"),
            seconds=pa.float64(),
            workers=pa.int32(),
            listed=pa.int64(),
            stored=pa.int64(),
            rejected=pa.int64(),
            new=pa.int64(),
            parts=pa.int64(),
            parts_built=pa.int64(),
            raw_byte=pa.int64(),
            stored_byte=pa.int64(),
            expectations=pa.int32(),
            expectations_met=pa.int32(),
        ),
        pa.field("version", pa.string()),
        *_columns(scenemill=pa.string(), software=pa.string()),
        pa.field("runner", pa.string()),
        pa.field("list_seconds", pa.float64()),
        pa.field("build_seconds", pa.float64()),
        pa.field("judge_seconds", pa.float64()),
        pa.field("publish_seconds", pa.float64()),
    ],
    metadata={"scenemill.table": "runs", "scenemill.version": TABLE_VERSION},
)
"""A row per run that changed a store or was stopped: when, what, how many, how long, which version came of it."""


COUNTS: Final = pa.schema(
    [
        *_columns(
            run=pa.string(),
            store_version=pa.string(),
            key=pa.string(),
            split=pa.string(),
            metric=pa.string(),
            rule=pa.string(),
            class_id=pa.int32(),
            class_name=pa.string(),
            tp=pa.int64(),
            fp=pa.int64(),
            fn=pa.int64(),
            iou_sum=pa.float64(),
        ),
    ],
    metadata={"scenemill.table": "counts", "scenemill.version": TABLE_VERSION},
)
"""A row per run, sample, metric, rule and class that has a segment: matched pairs, unmatched ones, and the sum of their IoU.

``metric`` is "prq" (3D) or "pq" (2D); ``rule`` says how segments were matched and is part of every number's name.
"""

SCORES: Final = pa.schema(
    [
        *_columns(
            run=pa.string(),
            model=pa.string(),
            source=pa.string(),
            split=pa.string(),
            store_version=pa.string(),
            metric=pa.string(),
            rule=pa.string(),
            group=pa.string(),
        ),
        *_columns(nullable=True, quality=pa.float64(), segmentation=pa.float64(), recognition=pa.float64(), classes=pa.int32()),
        *_columns(nullable=True, tp=pa.int64(), fp=pa.int64(), fn=pa.int64(), iou_sum=pa.float64(), samples=pa.int64()),
        *_columns(published=pa.bool_(), origin=pa.string(), created=pa.timestamp("us", tz="UTC")),
        *_columns(nullable=True, training=pa.string(), settings=pa.string(), epoch=pa.int32(), step=pa.int64()),
    ],
    metadata={"scenemill.table": "scores", "scenemill.version": SCORES_VERSION},
)
"""A row per run, metric, rule and group: ``group`` is "all", "things", "stuff" or a class name.

``quality`` is PRQ or PQ, ``segmentation`` RSQ or SQ, ``recognition`` RRQ or RQ: fractions from 0 to 1, null where no class of the
group has ground truth. ``classes`` is the number of classes averaged. Rows of ``published`` results carry no counts; ``origin``
says where a number comes from.

Of an evaluated checkpoint ``training`` is its folder, ``epoch`` and ``step`` its place there, where it says them, and ``settings`` a
digest of what decides numbers beside weights and samples: runs that share ``training``, ``settings`` and the columns before them are
the points of one curve.
"""

DEPTHS: Final = pa.schema(
    _columns(
        run=pa.string(),
        store_version=pa.string(),
        key=pa.string(),
        split=pa.string(),
        pixels=pa.int64(),
        abs_rel=pa.float64(),
        rmse_m=pa.float64(),
        delta_1=pa.float64(),
    ),
    metadata={"scenemill.table": "depths", "scenemill.version": TABLE_VERSION},
)
"""A row per run and sample: errors of predicted depth over pixels whose true depth is 0.4 to 6 m. No reference reports these."""

RENDERS: Final = pa.schema(
    [
        *_columns(
            run=pa.string(),
            store_version=pa.string(),
            key=pa.string(),
            split=pa.string(),
            mask_iou=pa.float64(),
            psnr_db=pa.float64(),
        ),
        pa.field("ssim", pa.float64()),
    ],
    metadata={"scenemill.table": "renders", "scenemill.version": TABLE_VERSION},
)
"""A row per fitted mesh and view that it was measured on: IoU of what it covers and the mask, and how near the images are.

``split`` is "held out" for views that the fit has not seen. ``ssim`` is null for images smaller than its window of 11 pixels.
"""

FITS: Final = pa.schema(
    [
        *_columns(
            run=pa.string(),
            store_version=pa.string(),
            template=pa.string(),
            settings=pa.string(),
            views=pa.int64(),
            held_out=pa.int64(),
            epochs=pa.int64(),
            vertices=pa.int64(),
            faces=pa.int64(),
            loss=pa.float64(),
            seconds=pa.float64(),
        ),
        *_columns(nullable=True, chamfer=pa.float64(), truth=pa.string()),
    ],
    metadata={"scenemill.table": "fits", "scenemill.version": TABLE_VERSION},
)
"""A row per fitted mesh: from what, how long, and the mean loss of its last epoch; its qualities are in ``renders`` and ``scores``.

``settings`` is JSON. ``chamfer`` is the mean distance between its surface and that of ``truth``, in the unit of the views' scene, where
a true mesh was named.
"""


def table_of(schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of exactly ``schema``; a missing or null value in a column that may not be null is an error.

    Raises:
        ValueError: a required column of a row is missing or null.
    """
    listed = list(rows)
    for column in schema:
        if not column.nullable and any(row.get(column.name) is None for row in listed):
            raise ValueError(f"column {column.name!r} of table {schema.metadata[b'scenemill.table'].decode()!r} has no value")
    return pa.Table.from_pylist(listed, schema=schema)
