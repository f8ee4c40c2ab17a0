"""Polygons of any size as whole USD files, for any viewer and for Kaolin.

A stage is in metres with Y up. Its default prim is ``/World``, which holds one ``Mesh``. Values at vertices or faces are primvars:
``displayColor`` is what viewers show, whole numbers under readable names are ids. Named groups of faces are ``GeomSubset`` prims.

Source: the UsdGeom schemas of OpenUSD, and the stage layout of the Timelapse specification, so that both kinds of file read alike.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import LABELS, VOID, Label
from scenemill.trainers.usd.arrays import to_unit, to_value
from scenemill.trainers.usd.authoring import to_prim_name
from scenemill.transforms.meshes import PanopticMesh
from scenemill.transforms.publish import write_whole

SUFFIXES: Final = (".usd", ".usdc", ".usda")
"""Of USD files: the first two are binary, the last is text."""

MESH_PATH: Final = "/World/mesh"
"""Where in a stage the polygons are."""

_FAMILY: Final = "semantics"  # of the subsets; no face is in two of them


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons of any number of corners, with what is known of their vertices and faces.

    Attributes:
        points: (V, 3) floats, metres; X right, Y up.
        counts: (F,) integers, corners of each face, 3 or more.
        indices: (sum of counts,) integers, the vertices of one face after another, counter-clockwise as seen from outside.
        per_vertex, per_face: name -> one value for each: (N,) integers, ids; or (N, 3), colours, uint8 or floats from 0 to 1.
        groups: name, any text -> (n,) integers, faces; no face is in two groups.

    Raises:
        ConfigError: sizes or ids that do not fit together, or a name of values that USD does not allow.
    """

    points: NDArray[Any]
    counts: NDArray[Any]
    indices: NDArray[Any]
    per_vertex: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    per_face: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or not np.isfinite(self.points).all():
            raise ConfigError(f"polygons: points {self.points.shape}; give (V, 3) finite numbers")
        if self.counts.ndim != 1 or self.counts.dtype.kind not in "iu" or (self.counts < 3).any():
            raise ConfigError(
                f"polygons: counts {self.counts.shape} {self.counts.dtype}; give a list of integers, 3 or more a face"
            )
        if int(self.counts.sum()) != len(self.indices):
            raise ConfigError(f"polygons: counts for {int(self.counts.sum())} of {len(self.indices)} indices; give counts for all")
        _check_within("indices", self.indices, len(self.points))
        self._check_values()
        self._check_groups()

    def _check_values(self) -> None:
        for values, count in ((self.per_vertex, len(self.points)), (self.per_face, len(self.counts))):
            for name, array in values.items():
                _check_name(name)
                if len(array) != count or not (_are_colors(array) or (_are_ids(array) and name != "displayColor")):
                    raise ConfigError(
                        f"polygons: {name} {array.shape} {array.dtype}; give {count} colours or {count} ids of 32 bits"
                    )
        both = set(self.per_vertex) & set(self.per_face)
        if both:
            raise ConfigError(f"polygons: {sorted(both)} both per vertex and per face; give one of them")

    def _check_groups(self) -> None:
        for name, faces in self.groups.items():
            _check_within(f"group {name}", faces, len(self.counts))
        members = np.concatenate([np.empty(0, np.intp), *(faces.astype(np.intp) for faces in self.groups.values())])
        if np.bincount(members).max(initial=0) > 1:
            raise ConfigError("polygons: a face in two groups, or twice in one; give each at most once")


def _are_colors(array: NDArray[Any]) -> bool:
    return array.ndim == 2 and array.shape[1] == 3 and (array.dtype == np.uint8 or array.dtype.kind == "f")


def _are_ids(array: NDArray[Any]) -> bool:
    whole = array.ndim == 1 and array.dtype.kind in "iu"
    return whole and (not array.size or -(2**31) <= int(array.min()) <= int(array.max()) < 2**31)


def _check_within(name: str, indices: NDArray[Any], count: int) -> None:
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not ((indices >= 0) & (indices < count)).all():
        raise ConfigError(f"polygons: {name} {indices.shape} {indices.dtype}; give a list of integers from 0 to {count - 1}")


def _check_name(name: str) -> None:
    if not (name.isidentifier() and name.isascii()):
        raise ConfigError(f"polygons: the name {name!r}; USD takes letters, digits and '_', not a digit first")


def panoptic_polygons(mesh: PanopticMesh, labels: Sequence[Label] = LABELS) -> Polygons:
    """The triangles of a volume with colours, class ids, segment ids, and a group of faces for each class, named after it.

    Args:
        mesh: with Y up, as ``upright`` returns it.
        labels: those that the mesh was made with.
    """
    classes = mesh.face_classes
    present = set(np.unique(classes).tolist()) - {VOID}
    return Polygons(
        points=mesh.vertices,
        counts=np.full(len(mesh.faces), 3, np.int32),
        indices=mesh.faces.reshape(-1),
        per_vertex={"displayColor": mesh.colors, "semantic_id": mesh.classes, "segment_id": mesh.segments},
        groups={label.name: np.flatnonzero(classes == label.id) for label in labels if label.id in present},
    )


def write_mesh(path: Path, polygons: Polygons) -> None:
    """Write polygons as a USD file, whole or not at all; the suffix of its name says which kind of file it is.

    Raises:
        ConfigError: another suffix than those of ``SUFFIXES``.
    """
    write_whole(path, to_usd(polygons, path.suffix))


def to_usd(polygons: Polygons, suffix: str = SUFFIXES[0]) -> bytes:
    """Polygons as the bytes of a USD file: the same bytes for the same polygons.

    Args:
        polygons: what to write.
        suffix: one of ``SUFFIXES``, the kind of file.

    Raises:
        ConfigError: another suffix.
    """
    if suffix not in SUFFIXES:
        raise ConfigError(f"USD file with the suffix {suffix!r}; let its name end with {', '.join(SUFFIXES)}")
    stage = _new_stage()
    mesh = _define_mesh(stage, polygons)
    _define_groups(mesh, polygons.groups)
    with tempfile.TemporaryDirectory() as folder:  # usd-core encodes binary layers into files only
        path = Path(folder, f"stage{suffix}")
        stage.GetRootLayer().Export(str(path))
        return path.read_bytes()


def _new_stage() -> Any:
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, UsdGeom.LinearUnits.meters)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    return stage


def _define_mesh(stage: Any, polygons: Polygons) -> Any:
    from pxr import UsdGeom

    mesh = UsdGeom.Mesh.Define(stage, MESH_PATH)
    points = polygons.points.astype(np.float32)
    mesh.CreatePointsAttr(to_value("point3f[]", points))
    mesh.CreateFaceVertexCountsAttr(to_value("int[]", polygons.counts))
    mesh.CreateFaceVertexIndicesAttr(to_value("int[]", polygons.indices))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)  # else viewers round every corner off
    if len(points):
        mesh.CreateExtentAttr(to_value("float3[]", np.stack([points.min(axis=0), points.max(axis=0)])))
    for values, interpolation in ((polygons.per_vertex, UsdGeom.Tokens.vertex), (polygons.per_face, UsdGeom.Tokens.uniform)):
        for name, array in values.items():
            _define_primvar(mesh, name, array, interpolation)
    return mesh


def _define_primvar(mesh: Any, name: str, values: NDArray[Any], interpolation: str) -> None:
    from pxr import Sdf, UsdGeom

    kind = "int[]" if values.ndim == 1 else "color3f[]"
    primvar = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(name, Sdf.ValueTypeNames.Find(kind), interpolation)
    primvar.Set(to_value(kind, values if values.ndim == 1 else to_unit(values)))


def _define_groups(mesh: Any, groups: Mapping[str, NDArray[Any]]) -> None:
    from pxr import UsdGeom

    for prim_name, (name, faces) in zip(_prim_names(groups), groups.items(), strict=True):
        subset = UsdGeom.Subset.CreateGeomSubset(mesh, prim_name, UsdGeom.Tokens.face, to_value("int[]", faces), _FAMILY)
        if name != prim_name:
            subset.GetPrim().SetDisplayName(name)
    if groups:
        UsdGeom.Subset.SetFamilyType(mesh, _FAMILY, UsdGeom.Tokens.nonOverlapping)


def _prim_names(names: Iterable[str]) -> list[str]:
    """A name that USD allows for each, no two the same.

    >>> _prim_names(["chair", "night stand", "night-stand", "2 seats"])
    ['chair', 'night_stand', 'night_stand_', '_2_seats']
    """
    allowed: list[str] = []
    for name in names:
        one = to_prim_name(name)
        while one in allowed:
            one += "_"
        allowed.append(one)
    return allowed
