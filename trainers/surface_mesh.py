"""A surface mesh, or a batch of them: tensors under fixed names, what follows from them computed when it is asked for.

Source: the names, the arguments and the kinds of batch are those of Kaolin's ``rep.SurfaceMesh``, Apache 2.0.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers import surface_mesh_joining as joining
from scenemill.trainers.surface_mesh_attributes import (
    FLOAT_NAMES,
    MATERIALS,
    NAMES,
    SHARED,
    TENSOR_NAMES,
    TRANSFORM,
    attribute_info,
    flaws_of,
)
from scenemill.trainers.surface_mesh_attributes import Batching as Kind
from scenemill.trainers.surface_mesh_batching import convert_attribute_batching, convert_transform
from scenemill.trainers.surface_mesh_compute import WAYS, Way, ways_of
from scenemill.trainers.surface_mesh_text import describe

_SOURCES = "_sources"  # of a mesh: computed attribute -> the names that it was computed from

_log = logging.getLogger(__name__)


class SurfaceMesh:
    """Faces with the same number n of corners, and what is known of them; one mesh or a batch, see ``Batching``.

    What was not given reads as None, or, where it follows from other attributes, is computed on access and kept. It is not kept where
    it must carry a gradient, and it is dropped when what it was computed from is set anew. Setting None takes an attribute away.

    Attributes:
        vertices: (V, 3) floats.
        faces: (F, n) integers, rows of ``vertices``.
        normals, face_normals_idx: (N, 3) unit vectors, and (F, n) rows of them, -1 for none.
        uvs, face_uvs_idx: (U, 2), v down, and (F, n) rows of them, -1 for none.
        vertex_normals, vertex_tangents, vertex_colors, vertex_features: (V, C).
        face_vertices, face_normals, face_uvs, face_tangents, face_colors, face_features: (F, n, C), of the corners.
        material_assignments: (F,) integers, numbers of ``materials``, -1 for none.
        materials: a list of ``PBRMaterial``, or of dictionaries; a list of lists for a batch.
        transform: (4, 4), world from the frame of the vertices, translation in the last column; None for the identity.
        batching: the kind of batch. In a FIXED one all tensors but ``faces`` have B as first axis; in a LIST one they are lists of
            tensors. ``transform`` is (B, 4, 4) in both, or (4, 4) for all.
        allow_auto_compute: compute what is missing on access.
        unset_attributes_return_none: read None for what is missing; else an ``AttributeError``.
    """

    Batching = Kind
    convert_attribute_batching = staticmethod(convert_attribute_batching)

    batching: Kind
    allow_auto_compute: bool
    unset_attributes_return_none: bool

    def __init__(
        self,
        vertices: torch.Tensor | list[torch.Tensor],
        faces: torch.Tensor | list[torch.Tensor],
        normals: Any = None,
        uvs: Any = None,
        face_uvs_idx: Any = None,
        face_normals_idx: Any = None,
        material_assignments: Any = None,
        materials: list[Any] | None = None,
        vertex_normals: Any = None,
        vertex_tangents: Any = None,
        vertex_colors: Any = None,
        vertex_features: Any = None,
        face_normals: Any = None,
        face_uvs: Any = None,
        face_vertices: Any = None,
        face_tangents: Any = None,
        face_colors: Any = None,
        face_features: Any = None,
        transform: torch.Tensor | None = None,
        strict_checks: bool = True,
        unset_attributes_return_none: bool = True,
        allow_auto_compute: bool = True,
    ) -> None:
        """See the attributes; the kind of batch is told by ``vertices`` and ``faces``.

        Raises:
            ConfigError: with ``strict_checks``, tensors of shapes that do not fit; sizes within a LIST are not compared.
        """
        given = {name: value for name, value in locals().items() if name in NAMES and value is not None}
        self.__dict__.update(given, batching=_batching_of(vertices, faces), **{_SOURCES: {}})
        flaws = flaws_of(self.as_dict(only_tensors=True), self.batching, len(self)) if strict_checks else ()
        if flaws:
            raise ConfigError("; ".join(flaws))

    def __getattr__(self, attr: str) -> Any:
        """What has not been set: computed if it can be, else None or an ``AttributeError``."""
        if attr not in NAMES:
            raise AttributeError(f"a SurfaceMesh has no attribute {attr!r}; there are {', '.join(NAMES)}")
        if not self.allow_auto_compute:
            return self._missing(attr, "has not been set, and allow_auto_compute is off")
        return self._compute(attr, should_cache=None)

    def __setattr__(self, attr: str, value: Any) -> None:
        if attr not in NAMES:
            raise AttributeError(f"a SurfaceMesh has no attribute {attr!r} to set; there are {', '.join(NAMES)}")
        if attr == "batching":
            self.set_batching(value)
            return
        self._forget(attr)
        if value is None:
            self.__dict__.pop(attr, None)
        else:
            self.__dict__[attr] = value

    def __delattr__(self, attr: str) -> None:
        if not self.has_attribute(attr):
            raise AttributeError(f"{attr!r} of this SurfaceMesh has not been set")
        setattr(self, attr, None)

    def _forget(self, attr: str) -> None:
        """Drop what was computed from an attribute; and that the attribute itself was."""
        sources: dict[str, frozenset[str]] = self.__dict__[_SOURCES]
        sources.pop(attr, None)
        for name in [name for name, from_names in sources.items() if attr in from_names]:
            del self.__dict__[name], sources[name]

    # Access

    def get_attributes(self, only_tensors: bool = False) -> list[str]:
        """The names of all that is set."""
        return [name for name in (TENSOR_NAMES if only_tensors else NAMES) if name in self.__dict__]

    def has_attribute(self, attr: str) -> bool:
        """Whether an attribute is set; nothing is computed."""
        return attr in NAMES and attr in self.__dict__

    def get_attribute(self, attr: str) -> Any:
        """An attribute as it was set; nothing is computed.

        Raises:
            AttributeError: no such attribute; or not set, and ``unset_attributes_return_none`` is off.
        """
        _check_name(attr)
        return self.__dict__[attr] if attr in self.__dict__ else self._missing(attr, "has not been set")

    def get_or_compute_attribute(self, attr: str, should_cache: bool | None = None) -> Any:
        """An attribute as it was set, or computed.

        Args:
            attr: its name.
            should_cache: keep what was computed; None to keep it unless it must carry a gradient.

        Raises:
            AttributeError: no such attribute; or it cannot be computed, and ``unset_attributes_return_none`` is off.
        """
        _check_name(attr)
        return self.__dict__[attr] if attr in self.__dict__ else self._compute(attr, should_cache)

    def probably_can_compute_attribute(self, attr: str) -> bool:
        """Whether all that an attribute is computed from is there; its values are not looked at."""
        _check_name(attr)
        return next(self._open_ways(attr, frozenset()), None) is not None

    def has_or_can_compute_attribute(self, attr: str) -> bool:
        """Whether an attribute is set or can probably be computed."""
        return self.has_attribute(attr) or self.probably_can_compute_attribute(attr)

    def as_dict(self, only_tensors: bool = False) -> dict[str, Any]:
        """All that is set, by name; nothing is computed."""
        return {name: self.__dict__[name] for name in self.get_attributes(only_tensors)}

    def ensure_indexed_attribute(self, attr: str) -> None:
        """Make ``normals`` or ``uvs`` and their indices of the values of the corners, one for each, where they are not set.

        Raises:
            ConfigError: another attribute, or no values of the corners.
        """
        if attr not in ("normals", "uvs"):
            raise ConfigError(f"{attr!r} has no indices; give 'normals' or 'uvs'")
        index = f"face_{attr}_idx"
        if self.has_attribute(attr) and self.has_attribute(index):
            return
        values = self.get_or_compute_attribute(f"face_{attr}", should_cache=False)
        if values is None:
            raise ConfigError(f"no face_{attr} to make {attr} of; set them first")
        setattr(self, attr, self._each(joining.rows_of_corners, (values,)))
        setattr(self, index, self._each(joining.numbers_of_corners, (values,)))

    def _missing(self, attr: str, reason: str) -> None:
        if not self.unset_attributes_return_none:
            raise AttributeError(f"{attr!r} {reason}; set it, or set unset_attributes_return_none to read None")
        _log.debug("%r %s", attr, reason)

    # Computing

    def _open_ways(self, attr: str, asked: frozenset[str]) -> Iterator[Way]:
        """The ways to compute an attribute whose needs are met without what is being computed already."""
        asked = asked | {attr}
        for way in WAYS.get(attr, ()):
            missing = [name for name in way.needs if name not in self.__dict__]
            if all(name not in asked and next(self._open_ways(name, asked), None) for name in missing):
                yield way

    def _compute(self, attr: str, should_cache: bool | None, asked: frozenset[str] = frozenset()) -> Any:
        reasons = []
        for way in self._open_ways(attr, asked):
            try:
                return self._go(way, attr, should_cache, asked | {attr})
            except (ConfigError, IndexError, RuntimeError) as error:  # PyTorch's own errors tell of shapes and devices
                reasons.append(str(error))
        if reasons:
            _log.warning("%r could not be computed: %s", attr, "; ".join(reasons))
            return self._missing(attr, f"could not be computed: {'; '.join(reasons)}")
        without = f", and cannot be computed without {ways_of(attr)}" if attr in WAYS else ""
        return self._missing(attr, f"has not been set{without}")

    def _go(self, way: Way, attr: str, should_cache: bool | None, asked: frozenset[str]) -> Any:
        sources = []
        for name in way.needs:
            value = self.__dict__[name] if name in self.__dict__ else self._compute(name, should_cache, asked)
            if value is None:
                raise ConfigError(f"{name} could not be computed")
            sources.append(value)
        result = self._each(way.compute, (self._vertex_count(), *sources))
        if should_cache or (should_cache is None and not any(_needs_gradient(value) for value in sources)):
            roots = [self.__dict__[_SOURCES].get(name, frozenset()) for name in way.needs]
            others = [one.needs for one in WAYS[attr]]  # what another way, perhaps a better one, could come from
            self.__dict__[_SOURCES][attr] = frozenset().union(*roots, *others)
            self.__dict__[attr] = result
        return result

    def _each(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The result of a function, or the list of its results for each mesh of a LIST."""
        if self.batching != Kind.LIST:
            return function(*arguments)
        return [function(*of_one) for of_one in zip(*arguments, strict=True)]

    def _vertex_count(self) -> Any:
        vertices = self.__dict__["vertices"]
        return [len(one) for one in vertices] if self.batching == Kind.LIST else vertices.shape[-2]

    # Batches

    def __len__(self) -> int:
        """The number of meshes."""
        return 1 if self.batching == Kind.NONE else len(self.__dict__["vertices"])

    def __getitem__(self, index: int | slice) -> "SurfaceMesh":
        """One mesh of a batch, in batching NONE; or for a slice some of them, in this batching."""
        if not isinstance(index, slice):
            number = range(len(self))[index]
            return SurfaceMesh(**joining.one_of(self, number), strict_checks=False)
        if self.batching == Kind.NONE:
            raise ConfigError("a single mesh has no slices; call to_batched() first")
        return SurfaceMesh(**joining.some_of(self, index), strict_checks=False)

    def getattr_batched(self, attr: str, batching: Kind) -> Any:
        """An attribute, computed if need be, in another kind of batch.

        Raises:
            ConfigError: the value cannot be in that kind of batch.
        """
        value = getattr(self, attr)
        if value is None or attr not in (MATERIALS, *TENSOR_NAMES):
            return value
        if attr == TRANSFORM:
            return convert_transform(value, batching, len(self))
        is_tensor = attr != MATERIALS
        return convert_attribute_batching(value, self.batching, batching, is_tensor, attr == SHARED, len(self))

    def to_batched(self) -> "SurfaceMesh":
        """Make this a FIXED batch in place, and return it."""
        return self.set_batching(Kind.FIXED)

    def set_batching(self, batching: Kind, skip_errors: bool = False) -> "SurfaceMesh":
        """Change the kind of batch in place, and return the mesh.

        Args:
            batching: the kind.
            skip_errors: leave out what cannot be in that kind of batch, other than vertices and faces.

        Raises:
            ConfigError: an attribute cannot be in that kind of batch.
        """
        batching = Kind(batching)
        if self.batching == batching or len(self) == 0:
            return self
        changed: dict[str, Any] = {}
        for name in joining.names_of_data(self):
            try:
                changed[name] = self.getattr_batched(name, batching)
            except ConfigError as error:
                if not skip_errors or name in ("vertices", "faces"):
                    raise ConfigError(f"{name} cannot be in batching {batching}: {error}") from error
                _log.warning("%s is left out of batching %s: %s", name, batching, error)
        settings = {name: value for name, value in self.__dict__.items() if name not in (MATERIALS, *TENSOR_NAMES)}
        self.__dict__.clear()
        self.__dict__.update(settings, **changed, batching=batching)
        return self

    @classmethod
    def cat(cls, meshes: Sequence["SurfaceMesh"], fixed_topology: bool = True, skip_errors: bool = False) -> "SurfaceMesh":
        """Meshes and batches as one batch; only what all of them have set is in it.

        Args:
            meshes: one or more, of any kind of batch.
            fixed_topology: make a FIXED batch; else a LIST.
            skip_errors: leave out what cannot be in that kind of batch, other than vertices and faces.

        Returns:
            A new mesh. Where coordinates or normals differ in number, a FIXED batch has those of the corners instead.

        Raises:
            ConfigError: no mesh, or meshes that do not fit together.
        """
        batch = cls(**joining.joined(meshes, fixed_topology), strict_checks=False)
        return batch.set_batching(Kind.FIXED if fixed_topology else Kind.LIST, skip_errors)

    @classmethod
    def flatten(
        cls, meshes: Sequence["SurfaceMesh"], skip_errors: bool = False, group_materials_by_name: bool = False
    ) -> "SurfaceMesh":
        """All meshes of meshes and batches as a single one in the world.

        Args:
            meshes: one or more, with faces of the same size.
            skip_errors: leave out attributes that do not fit together, other than vertices and faces.
            group_materials_by_name: materials of the same name become one, the first.

        Returns:
            A new mesh in batching NONE. What one of them lacks all lack, but materials: faces without one have -1.

        Raises:
            ConfigError: no mesh, or meshes that do not fit together.
        """
        singles = [mesh[number].as_transformed() for mesh in meshes for number in range(len(mesh))]
        return cls(**joining.flat(singles, skip_errors, group_materials_by_name), strict_checks=False)

    def as_transformed(self) -> "SurfaceMesh":
        """A new mesh in the world: positions and tangents by ``transform``, normals by its inverse transpose; it has no transform."""
        moved = self.__copy__()
        if self.has_attribute(TRANSFORM):
            moved.__dict__.update(joining.moved(self))
            moved.__dict__.pop(TRANSFORM)
        return moved

    # Checks and words

    def check_sanity(self) -> bool:
        """Whether all shapes fit the kind of batch; what does not is logged."""
        flaws = flaws_of(self.as_dict(only_tensors=True), self.batching, len(self))
        for flaw in flaws:
            _log.error(flaw)
        return not flaws

    def is_triangular(self) -> bool:
        """Whether all faces are triangles."""
        faces = self.__dict__["faces"]
        return all(one.shape[-1] == 3 for one in (faces if isinstance(faces, list) else [faces]))

    @classmethod
    def attribute_info_string(cls, batching: Kind) -> str:
        """All attributes and their shapes in a kind of batch, a line for each."""
        return attribute_info(Kind(batching))

    def describe_attribute(self, attr: str, print_stats: bool = False, detailed: bool = False) -> str:
        """An attribute in words; "None" if it is not set. See ``to_string``."""
        _check_name(attr)
        if attr not in self.__dict__:
            return "None"
        return describe(attr, self.__dict__[attr], self.batching != Kind.NONE, print_stats, detailed)

    def to_string(self, print_stats: bool = False, detailed: bool = False) -> str:
        """All that is set and what could be computed, a line for each.

        Args:
            print_stats: also the smallest and largest value and the mean.
            detailed: also gradient, leaf and layout.
        """
        lines = [self.describe_attribute(name, print_stats, detailed) for name in joining.names_of_data(self)]
        missing = [name for name in TENSOR_NAMES if name in WAYS and name not in self.__dict__]
        ways = [f"{name:>20}: if possible, computed on access from: {ways_of(name)}" for name in missing]
        return "\n".join([f"SurfaceMesh object with batching strategy {self.batching}", *lines, *ways])

    def __repr__(self) -> str:
        return self.to_string()

    # Devices and dtypes

    def __copy__(self) -> "SurfaceMesh":
        """A new mesh with the same tensors; its lists are its own."""
        copied = object.__new__(SurfaceMesh)
        copied.__dict__.update({name: list(value) if isinstance(value, list) else value for name, value in self.__dict__.items()})
        copied.__dict__[_SOURCES] = dict(self.__dict__[_SOURCES])
        return copied

    def to(self, device: torch.device | str, attributes: Iterable[str] | None = None) -> "SurfaceMesh":
        """A copy on a device, its materials too; or with only some attributes there."""
        return self._applied(lambda tensor: tensor.to(device), attributes)

    def cuda(self, device: torch.device | str | None = None, attributes: Iterable[str] | None = None) -> "SurfaceMesh":
        """A copy on the GPU; see ``to``."""
        return self.to("cuda" if device is None else device, attributes)

    def cpu(self, attributes: Iterable[str] | None = None) -> "SurfaceMesh":
        """A copy in the host's memory; see ``to``."""
        return self.to("cpu", attributes)

    def float_tensors_to(self, float_dtype: torch.dtype) -> "SurfaceMesh":
        """A copy with floats of another dtype; materials keep theirs."""
        names = [name for name in FLOAT_NAMES if self.has_attribute(name)]
        return self._applied(lambda tensor: tensor.to(float_dtype), names)

    def detach(self, attributes: Iterable[str] | None = None) -> "SurfaceMesh":
        """A copy cut off from gradients, or with only some attributes cut off."""
        return self._applied(lambda tensor: tensor.detach(), attributes)

    def _applied(self, function: Callable[[torch.Tensor], torch.Tensor], attributes: Iterable[str] | None) -> "SurfaceMesh":
        names = [*self.get_attributes(only_tensors=True), MATERIALS] if attributes is None else list(attributes)
        changed = self.__copy__()
        for name in names:
            _check_name(name)
            value = getattr(self, name)
            if value is not None:
                changed.__dict__[name] = joining.applied(function, value)
        return changed


def _check_name(attr: str) -> None:
    if attr not in NAMES:
        raise AttributeError(f"a SurfaceMesh has no attribute {attr!r}; there are {', '.join(NAMES)}")


def _batching_of(vertices: Any, faces: Any) -> Kind:
    if not all(isinstance(one, torch.Tensor | list) for one in (vertices, faces)):
        raise ConfigError(f"vertices and faces: {type(vertices).__name__}, {type(faces).__name__}; give tensors or lists of them")
    if isinstance(vertices, list) or isinstance(faces, list) or faces.ndim == 3:
        return Kind.LIST
    return Kind.FIXED if vertices.ndim == 3 else Kind.NONE


def _needs_gradient(value: Any) -> bool:
    return any(one.requires_grad for one in (value if isinstance(value, list) else [value]))
