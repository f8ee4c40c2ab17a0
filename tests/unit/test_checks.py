"""Every check speaks when its promise is broken, and only then; good samples pass; what is counted is what is there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.pipelines.examine import rules_of
from scenemill.schemas.fields import ROOM_SOURCES, fields_of, raw_orientation
from scenemill.schemas.labels import CEILING, FLOOR, LABELS, WALL
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import Finding, Severity
from scenemill.transforms.geometry import front3d_frustum
from scenemill.transforms.sources import list_samples, open_source, read_sample
from scenemill.validators import checks
from scenemill.validators.check import Check
from scenemill.validators.checks import CHECKS, check_sample
from scenemill.validators.measures import Measured, Rules

GRID = 64
FRUSTUM = front3d_frustum(GRID)
THINGS = [label.id for label in LABELS if label.thing]
NOBODY = 4000  # an instance id that no made-up world gives

Arrays = dict[str, NDArray[Any]]
Voxel = tuple[int, ...]
Mutation = Callable[[Arrays], None]


@dataclass(frozen=True)
class World:
    """The samples of a made-up folder, and one of them that no check has anything to say about."""

    rules: Rules
    samples: tuple[Sample, ...]
    clean: Sample


def read_world(source: str, root: Path) -> World:
    listed, problems = list_samples(source, root)
    opened = open_source(source, root, listed)
    samples = []
    for one in listed:
        sample, findings = read_sample(opened, one)
        assert not findings and not problems
        samples.append(sample)
    rules = rules_of(opened)
    return World(
        rules, tuple(samples), next(sample for sample in samples if is_rich(sample) and not check_sample(sample, rules)[0])
    )


def is_rich(sample: Sample) -> bool:
    """Whether it has a few things, and two of one class in the 3D-Front form."""
    kinds = [kind for _, kind in both(dict(sample.arrays))]
    return len(kinds) > 3 if "outside" in sample else len(set(kinds)) < len(kinds)


@pytest.fixture(scope="module")
def worlds(front3d_world: Path, matterport_world: Path) -> dict[str, World]:
    return {"front3d": read_world("front3d", front3d_world), "matterport": read_world("matterport", matterport_world)}


def listen(sample: Sample, rules: Rules) -> tuple[dict[str, list[Finding]], list[str]]:
    """What every entry of CHECKS finds in a sample, by its name, and the names of those that were asked."""
    spoken: dict[str, list[Finding]] = {}
    asked = []

    def wrap(check: Check[Measured]) -> Check[Measured]:
        def run(measured: Measured) -> Iterator[Finding]:
            asked.append(check.name)
            found = list(check.run(measured))
            if found:
                spoken[check.name] = found
            return iter(found)

        return replace(check, run=run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "CHECKS", tuple(map(wrap, CHECKS)))
        findings, _ = check_sample(sample, rules)
    assert findings == [finding for found in spoken.values() for finding in found]
    return spoken, asked


def mutated(sample: Sample, change: Mutation, facts: dict[str, Any] | None = None) -> Sample:
    arrays = {name: array.copy() for name, array in sample.arrays.items()}
    change(arrays)
    return Sample(sample.key, arrays, {**sample.facts, **(facts or {})})


# --- places in a sample


def pick(where: NDArray[np.bool_]) -> Voxel:
    """One of the places, neither the first nor the last."""
    places = np.argwhere(where)
    assert len(places)
    return tuple(places[len(places) // 2].tolist())


def inside(a: Arrays) -> NDArray[np.bool_]:
    return ~a["outside"] if "outside" in a else FRUSTUM


def lonely(a: Arrays) -> NDArray[np.bool_]:
    """Voxels of the fill value whose six neighbours are fill, too."""
    fill = a["geometry"] == (-12.0 if "outside" in a else 12.0)
    alone: NDArray[np.bool_] = fill.copy()
    for axis in range(3):
        for shift in (1, -1):
            alone &= np.roll(fill, shift, axis)
    return alone


def far(a: Arrays) -> Voxel:
    """A voxel in the frustum, far from everything."""
    return pick(lonely(a) & inside(a))


def beyond(a: Arrays) -> Voxel:
    """A voxel outside the frustum, far from everything."""
    return pick(lonely(a) & ~inside(a))


def near(a: Arrays, low: float, high: float) -> Voxel:
    """A voxel in the frustum whose distance lies between two."""
    return pick((a["geometry"] > low) & (a["geometry"] < high) & inside(a))


def both(a: Arrays) -> list[tuple[int, int]]:
    """(instance, class) of the things in image and volume, those with the fewest pixels first."""
    found = []
    for instance in np.unique(a["instance_3d"][np.isin(a["semantic_3d"], THINGS)]):
        pixels = a["semantic_2d"][a["instance_2d"] == instance]
        if pixels.size:
            found.append((pixels.size, int(instance), int(pixels[0])))
    return [(instance, kind) for _, instance, kind in sorted(found)]


def stuff_2d(a: Arrays, kind: int = WALL) -> int:
    """The instance of a class of stuff with the fewest pixels."""
    ids, counts = np.unique(a["instance_2d"][a["semantic_2d"] == kind], return_counts=True)
    return int(ids[np.argmin(counts)])


def turn(a: Arrays) -> None:
    """Volumes rotated by 180 degrees about the depth axis, as the files of 3D-Front have them."""
    for name in ("geometry", "semantic_3d", "instance_3d", "weighting"):
        a[name] = a[name][::-1, ::-1].copy()


def put(name: str, place: Callable[[Arrays], Any], value: Any) -> Mutation:
    """Set some values of one array."""

    def change(a: Arrays) -> None:
        a[name][place(a)] = value

    return change


def scale(name: str, factor: float, shift: float = 0.0) -> Mutation:
    def change(a: Arrays) -> None:
        a[name] = (a[name] * factor + shift).astype(a[name].dtype)

    return change


def chain(*changes: Mutation) -> Mutation:
    def change(a: Arrays) -> None:
        for one in changes:
            one(a)

    return change


def shrink_thing(a: Arrays) -> None:
    """All but 200 pixels of the smallest thing become wall."""
    rows, columns = np.nonzero(a["instance_2d"] == both(a)[0][0])
    a["semantic_2d"][rows[200:], columns[200:]], a["instance_2d"][rows[200:], columns[200:]] = WALL, stuff_2d(a)


def remove_thing_3d(a: Arrays) -> None:
    gone = a["instance_3d"] == both(a)[0][0]
    a["semantic_3d"][gone], a["instance_3d"][gone] = WALL, 0


def add_thing_3d(a: Arrays) -> None:
    place = pick(a["semantic_3d"] == WALL)
    a["semantic_3d"][place], a["instance_3d"][place] = 9, NOBODY


def other_class_3d(voxels: int | None) -> Mutation:
    """Some voxels of a thing, or all, get another class of things, below its own (so that its own is told last)."""

    def change(a: Arrays) -> None:
        instance, _ = next(pair for pair in both(a) if pair[1] > 1)
        x, y, z = (index[:voxels] for index in np.nonzero(a["instance_3d"] == instance))
        a["semantic_3d"][x, y, z] = 1

    return change


def exchange_things_3d(a: Arrays) -> None:
    """In the volume, the two largest things of one class (or of any, in Matterport3D) exchange their ids."""
    pairs = both(a)[::-1]
    one, other = next((p, q) for i, p in enumerate(pairs) for q in pairs[i + 1 :] if p[1] == q[1] or "outside" in a)
    first, second = a["instance_3d"] == one[0], a["instance_3d"] == other[0]
    a["instance_3d"][first], a["instance_3d"][second] = other[0], one[0]


def split_floor(a: Arrays) -> None:
    rows, columns = np.nonzero(a["semantic_2d"] == FLOOR)
    a["instance_2d"][rows[::2], columns[::2]] = NOBODY


def label_far_voxels(a: Arrays) -> None:
    x, y, z = (index[:: max(1, len(index) // 400)] for index in np.nonzero(a["geometry"] > 5))
    assert len(x) > 0.05 * np.count_nonzero(a["semantic_3d"])
    a["semantic_3d"][x, y, z] = WALL


def invert(name: str) -> Mutation:
    def change(a: Arrays) -> None:
        a[name] = ~a[name]

    return change


def relabel(name: str, old: int, new: int) -> Mutation:
    def change(a: Arrays) -> None:
        assert (a[name] == old).any()
        a[name][a[name] == old] = new

    return change


# --- the table of mutations


@dataclass(frozen=True)
class Case:
    """A mutation of a clean sample and what must come of it.

    Attributes:
        name: of the entry of CHECKS that must speak.
        source: whose sample.
        what: the mutation in words.
        change: the mutation.
        says: check, field and severity of its finding, and a part of what it observed.
        also: other entries that cannot but speak.
    """

    name: str
    source: str
    what: str
    change: Mutation
    says: tuple[str, str, Severity, str]
    also: frozenset[str] = frozenset()
    facts: tuple[tuple[str, Any], ...] = ()


F, M = "front3d", "matterport"
ERROR: Final = "error"
WARNING: Final = "warning"
INFO: Final = "info"


def case(
    name: str,
    source: str,
    what: str,
    change: Mutation,
    field: str,
    severity: Severity,
    observed: str,
    *also: str,
    as_: str = "",
    **facts: Any,
) -> Case:
    return Case(name, source, what, change, (as_ or name, field, severity, observed), frozenset(also), tuple(facts.items()))


def matrix(name: str, row: int, column: int, value: float) -> Mutation:
    return put(name, lambda _: (row, column), value)


def pixels(count: int) -> Callable[[Arrays], Any]:
    return lambda _: (slice(100, 101), slice(50, 50 + count))


CASES = (
    case("finite", M, "three NaN in depth", put("depth", pixels(3), np.nan), "depth", ERROR, "3 values"),
    case("finite", F, "infinite depth", put("depth", pixels(1), np.inf), "depth", ERROR, "1 values", "depth_range"),
    case("finite", F, "NaN in a pose", matrix("world_from_camera", 0, 3, np.nan), "world_from_camera", ERROR, "1 values"),
    case(
        "finite",
        M,
        "NaN in K",
        matrix("intrinsics", 0, 1, np.nan),
        "intrinsics",
        ERROR,
        "1 values",
        "intrinsics",
        "depth_on_surface",
    ),
    case("intrinsics", M, "skew", matrix("intrinsics", 0, 1, 1e-3), "intrinsics", ERROR, "skew"),
    case("intrinsics", M, "a last row that is none", matrix("intrinsics", 3, 3, 2.0), "intrinsics", ERROR, "last row"),
    case("intrinsics", M, "focal length in metres", matrix("intrinsics", 0, 0, 0.035), "intrinsics", ERROR, "0.0, 2"),
    case("intrinsics", M, "no focal length", matrix("intrinsics", 0, 0, 0.0), "intrinsics", ERROR, "0.0, 2", "depth_on_surface"),
    case("intrinsics", M, "K of another image", scale("intrinsics", 20.0), "intrinsics", ERROR, "last row", "depth_on_surface"),
    case("intrinsics", M, "oblong pixels", matrix("intrinsics", 0, 0, 500.0), "intrinsics", WARNING, "500.0", "labels_agree"),
    case(
        "intrinsics",
        M,
        "centre outside",
        matrix("intrinsics", 0, 2, -1.0),
        "intrinsics",
        ERROR,
        "point -1.0",
        "depth_on_surface",
        "labels_agree",
    ),
    case("intrinsics", M, "centre below", matrix("intrinsics", 1, 2, 240.0), "intrinsics", ERROR, "point 240.0", "labels_agree"),
    case(
        "intrinsics", M, "centre far off", matrix("intrinsics", 1, 2, 200.0), "intrinsics", WARNING, "point 200.0", "labels_agree"
    ),
    case("pose", F, "a scaled rotation", scale("world_from_camera", 1.01), "world_from_camera", ERROR, "not orthonormal"),
    case(
        "pose",
        F,
        "a mirror",
        put("world_from_camera", lambda _: (slice(3), 0), (0, 0, 1)),
        "world_from_camera",
        ERROR,
        "orthonormal",
    ),
    case("pose", F, "a last row that is none", matrix("world_from_camera", 3, 0, 1e-3), "world_from_camera", ERROR, "last row"),
    case("depth_range", F, "negative depth", put("depth", pixels(1), -0.5), "depth", ERROR, "depth of -0.500 m"),
    case("depth_range", M, "negative depth", put("depth", pixels(1), -0.5), "depth", ERROR, "depth of -0.500 m"),
    case("depth_range", F, "no depth at all", scale("depth", 0.0), "depth", ERROR, "no pixel above 0", "depth_on_surface"),
    case("depth_range", M, "no depth at all", scale("depth", 0.0), "depth", ERROR, "no pixel above 0", "depth_on_surface"),
    case("depth_range", F, "millimetres", scale("depth", 1e3), "depth", ERROR, "a median of", "depth_on_surface", as_="depth_unit"),
    case("depth_range", M, "millimetres", scale("depth", 1e3), "depth", ERROR, "a median of", "depth_on_surface", as_="depth_unit"),
    case("depth_range", F, "too near", put("depth", pixels(1), 0.25), "depth", WARNING, "0.250 to"),
    case("depth_range", F, "too far", put("depth", pixels(1), 6.5), "depth", WARNING, "to 6.500 m"),
    case("depth_range", F, "pixels without depth", put("depth", pixels(7), 0.0), "depth", WARNING, "7 invalid pixels"),
    case("room_mask", M, "an empty room", scale("room_mask", 0.0), "room_mask", WARNING, "no pixel"),
    case(
        "labels_2d",
        F,
        "a class that is none",
        relabel("semantic_2d", CEILING, 13),
        "semantic_2d",
        ERROR,
        "ids 13",
        "labels_agree",
        as_="label_known",
    ),
    case(
        "labels_2d",
        M,
        "a class that is none",
        relabel("semantic_2d", FLOOR, 255),
        "semantic_2d",
        ERROR,
        "ids 255",
        "labels_agree",
        as_="label_known",
    ),
    case(
        "labels_2d",
        F,
        "void pixels",
        chain(put("semantic_2d", pixels(5), 0), put("instance_2d", pixels(5), 0)),
        "semantic_2d",
        WARNING,
        "5 void pixels",
    ),
    case("one_floor", F, "two floors", split_floor, "instance_2d", WARNING, "2 floor instances"),
    case("small_thing", F, "200 pixels of a thing", shrink_thing, "instance_2d", INFO, "of at most 200 pixels", "labels_agree"),
    case("small_thing", M, "200 pixels of a thing", shrink_thing, "instance_2d", INFO, "of at most 200 pixels"),
    case(
        "labels_3d",
        F,
        "no labels",
        chain(scale("semantic_3d", 0.0), scale("instance_3d", 0.0)),
        "semantic_3d",
        ERROR,
        "no labelled voxel",
        "things_in_both",
        "labels_on_surface",
    ),
    case(
        "labels_3d",
        F,
        "a class that is none",
        put("semantic_3d", lambda a: pick(a["semantic_3d"] == WALL), 13),
        "semantic_3d",
        ERROR,
        "class ids 13",
        as_="label_known",
    ),
    case(
        "one_class_per_instance",
        F,
        "a pixel of a wall says ceiling",
        put("semantic_2d", lambda a: pick(a["instance_2d"] == stuff_2d(a)), CEILING),
        "instance_2d",
        ERROR,
        "with several classes",
    ),
    case("one_class_per_instance", F, "a voxel of another class", other_class_3d(1), "instance_3d", ERROR, "several classes"),
    case("one_class_per_instance", M, "a voxel of another class", other_class_3d(1), "instance_3d", WARNING, "several classes"),
    case(
        "same_class",
        F,
        "a thing of another class in 3D",
        other_class_3d(None),
        "instance_3d",
        ERROR,
        "with another class in 3D",
        "labels_agree",
        as_="one_class_per_instance",
    ),
    case(
        "things_in_both",
        F,
        "a thing not in the volume",
        remove_thing_3d,
        "instance_3d",
        WARNING,
        "only in the image",
        "labels_agree",
    ),
    case("things_in_both", F, "a thing not in the image", add_thing_3d, "instance_2d", WARNING, "things 4000 only in the volume"),
    case("things_in_both", M, "a thing not in the image", add_thing_3d, "instance_2d", WARNING, "things 4000 only in the volume"),
    case(
        "things_have_instances",
        F,
        "a thing voxel without instance",
        put("instance_3d", lambda a: pick(a["instance_3d"] > 0), 0),
        "instance_3d",
        ERROR,
        "1 voxels",
    ),
    case(
        "things_have_instances",
        F,
        "a wall voxel with instance",
        put("instance_3d", lambda a: pick(a["semantic_3d"] == WALL), NOBODY),
        "instance_3d",
        ERROR,
        "1 voxels",
    ),
    case(
        "things_have_instances", F, "a free voxel with instance", put("instance_3d", far, NOBODY), "instance_3d", ERROR, "1 voxels"
    ),
    case(
        "instances_have_classes",
        M,
        "a free voxel with instance",
        put("instance_3d", beyond, NOBODY),
        "instance_3d",
        WARNING,
        "1 instance voxels without",
        as_="things_have_instances",
    ),
    case(
        "distance_range",
        F,
        "a negative distance",
        put("geometry", lambda a: np.unravel_index(a["geometry"].argmin(), a["geometry"].shape), -1e-3),
        "geometry",
        ERROR,
        "-0.001 to",
    ),
    case("distance_range", F, "a distance above 12", put("geometry", far, 12.5), "geometry", ERROR, "to 12.5 voxels"),
    case("distance_range", M, "a distance below -12", put("geometry", beyond, -12.5), "geometry", ERROR, "-12.5 to"),
    case("distance_range", F, "a distance that is none", put("geometry", far, np.nan), "geometry", ERROR, "1 values", as_="finite"),
    case("distance_range", M, "an infinite distance", put("geometry", beyond, np.inf), "geometry", ERROR, "1 values", as_="finite"),
    case(
        "distance_range",
        F,
        "nothing in the volume",
        scale("geometry", 0.0, 12.0),
        "geometry",
        ERROR,
        "nothing but the fill",
        "labels_on_surface",
        "weights_near_surface",
        "depth_on_surface",
    ),
    case(
        "distance_range",
        F,
        "distances in metres",
        scale("geometry", 0.12),
        "geometry",
        ERROR,
        "no voxel at 12",
        "surface_in_frustum",
        "labels_on_surface",
        "weights_near_surface",
        "distance_smooth",
        as_="distance_unit",
    ),
    case("distance_exact", F, "rounded float64", lambda _: None, "geometry", WARNING, "rounds", geometry_float32_exact=False),
    case("distance_exact", M, "rounded float64", lambda _: None, "geometry", WARNING, "rounds", geometry_float32_exact=False),
    case(
        "distance_smooth",
        F,
        "a voxel 2.5 further than it is",
        put("geometry", lambda a: near(a, 5.0, 5.1), 7.6),
        "geometry",
        WARNING,
        "neighbours more than 1 voxel apart",
    ),
    case("outside", M, "True and False exchanged", invert("outside"), "outside", ERROR, "of the grid outside", "depth_on_surface"),
    case("outside", M, "everything outside", scale("outside", 0, 1), "outside", ERROR, "100.0% of", "depth_on_surface"),
    case(
        "surface_in_frustum", F, "a distance outside", put("geometry", beyond, 11.5), "geometry", ERROR, "1 voxels with a distance"
    ),
    case(
        "labels_on_surface",
        F,
        "a surface without label",
        put("semantic_3d", lambda a: pick(a["semantic_3d"] == WALL), 0),
        "semantic_3d",
        ERROR,
        "1 voxels differ",
    ),
    case("labels_on_surface", F, "a label off the surface", put("semantic_3d", far, WALL), "semantic_3d", ERROR, "1 voxels differ"),
    case(
        "labels_in_band",
        M,
        "labels far from surfaces",
        label_far_voxels,
        "semantic_3d",
        WARNING,
        "3 or more",
        as_="labels_on_surface",
    ),
    case("weights", F, "another weight", put("weighting", far, 3), "weighting", ERROR, "1 voxels with another weight"),
    case(
        "weights", F, "a weight of the other source", put("weighting", lambda a: near(a, 1, 2), 25), "weighting", ERROR, "1 voxels"
    ),
    case(
        "weights",
        M,
        "a weight of the other source",
        put("weighting", beyond, 5),
        "weighting",
        ERROR,
        "1 voxels with another weight",
    ),
    case(
        "weights_near_surface",
        F,
        "a light surface",
        put("weighting", lambda a: near(a, 1, 2), 2),
        "weighting",
        ERROR,
        "1 light voxels",
    ),
    case(
        "weights_near_surface",
        F,
        "a heavy void",
        put("weighting", far, 10),
        "weighting",
        ERROR,
        "0 light voxels near a surface, 1 heavy",
    ),
    case("weights_outside", F, "a weight outside", put("weighting", beyond, 2), "weighting", ERROR, "1 voxels outside"),
    case("depth_on_surface", F, "decimetres", scale("depth", 10.0), "depth", ERROR, "of pixels in the frustum", "depth_range"),
    case(
        "depth_on_surface",
        F,
        "four columns too near",
        put("depth", lambda _: (slice(None), slice(None, None, 100)), 0.9),
        "depth",
        ERROR,
        "of 76800 pixels off",
    ),
    case(
        "depth_on_surface",
        F,
        "depth 0.3 m too far",
        scale("depth", 1.0, 0.3),
        "depth",
        ERROR,
        "pixels off the surface",
        "labels_agree",
    ),
    case(
        "depth_on_surface",
        M,
        "depth 0.6 m too near",
        scale("depth", 1.0, -0.6),
        "depth",
        WARNING,
        "of pixels on the surface",
        "labels_agree",
        "depth_range",
    ),
    case(
        "labels_agree",
        F,
        "walls that are ceiling in 3D",
        relabel("semantic_3d", WALL, CEILING),
        "semantic_3d",
        WARNING,
        "agree with their voxel",
        as_="classes_agree",
    ),
    case(
        "labels_agree", F, "two chairs exchanged", exchange_things_3d, "semantic_3d", WARNING, "agree with", as_="instances_agree"
    ),
    case(
        "labels_agree", M, "two things exchanged", exchange_things_3d, "semantic_3d", WARNING, "agree with", as_="instances_agree"
    ),
)


def test_every_check_has_a_mutation_that_makes_it_speak() -> None:
    assert {one.name for one in CASES} == {check.name for check in CHECKS}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("source", [F, M])
def test_good_samples_have_no_errors(source: str, worlds: dict[str, World]) -> None:
    for sample in worlds[source].samples:
        findings, _ = check_sample(sample, worlds[source].rules)
        assert not [finding for finding in findings if finding.blocks], sample.key


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.name}-{one.source}-{one.what.replace(' ', '_')}")
def test_a_broken_promise_is_told_by_its_check_and_no_other(one: Case, worlds: dict[str, World]) -> None:
    world = worlds[one.source]
    spoken, _ = listen(mutated(world.clean, one.change, dict(one.facts)), world.rules)
    check, field, severity, observed = one.says
    told = [
        finding
        for finding in spoken.get(one.name, [])
        if (finding.check, finding.field, finding.severity) == (check, field, severity)
    ]
    assert any(observed in finding.observed for finding in told), spoken
    assert set(spoken) == {one.name, *one.also}
    assert all(finding.expected for found in spoken.values() for finding in found)


def test_one_pixel_in_a_thousand_may_miss_the_surface(worlds: dict[str, World]) -> None:
    world = worlds["front3d"]
    nearer = Measured(mutated(world.clean, scale("depth", 1.0, -0.6)), world.rules)
    rows, columns = np.nonzero((nearer.inside & ~nearer.on_surface).reshape(world.rules.image))
    for count, told in ((76, []), (77, ["77 of 76800 pixels off the surface"])):

        def move(a: Arrays, count: int = count) -> None:
            a["depth"][rows[:count], columns[:count]] -= 0.6

        spoken, _ = listen(mutated(world.clean, move), world.rules)
        assert [finding.observed for finding in spoken.get("depth_on_surface", [])] == told


def test_volumes_turned_as_in_the_file_are_told_by_frustum_and_depth(worlds: dict[str, World]) -> None:
    world = worlds["front3d"]
    spoken, _ = listen(mutated(world.clean, turn), world.rules)
    assert {"surface_in_frustum", "weights_outside", "depth_on_surface"} <= set(spoken)
    assert {
        finding.severity for name in ("surface_in_frustum", "weights_outside", "depth_on_surface") for finding in spoken[name]
    } == {ERROR}


def test_labels_alone_turned_are_told(worlds: dict[str, World]) -> None:
    def turn_labels(a: Arrays) -> None:
        for name in ("semantic_3d", "instance_3d"):
            a[name] = a[name][::-1, ::-1].copy()

    world = worlds["front3d"]
    spoken, _ = listen(mutated(world.clean, turn_labels), world.rules)
    assert {"labels_on_surface"} <= set(spoken) <= {"labels_on_surface", "labels_agree"}


@pytest.mark.parametrize("source", [F, M])
def test_a_missing_field_spares_only_the_checks_that_need_it(source: str, worlds: dict[str, World]) -> None:
    world = worlds[source]
    fits = [check for check in CHECKS if source == F or not check.front3d_only]
    for field in fields_of(source):
        arrays = {name: array for name, array in world.clean.arrays.items() if name != field.name}
        assert len(arrays) == len(world.clean.arrays) - 1
        spoken, asked = listen(Sample("s/1", arrays, world.clean.facts), world.rules)
        spared = {field.name, "frustum"} if field.name == "outside" else {field.name}
        present = {*world.clean.arrays, "frustum"} - spared
        assert asked == [check.name for check in fits if present.issuperset(check.fields)], field.name
        assert not spoken


@pytest.mark.parametrize("source", [F, M])
def test_a_sample_without_arrays_has_no_findings(source: str, worlds: dict[str, World]) -> None:
    assert listen(Sample("s/1", {}), worlds[source].rules) == ({}, ["finite"])


@pytest.mark.parametrize("source", [F, M])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300])
def test_any_value_in_any_array_of_numbers_ends_in_findings(value: float, source: str, worlds: dict[str, World]) -> None:
    world = worlds[source]
    for name, array in world.clean.arrays.items():
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                filled = np.full_like(array, value)
            findings, _ = check_sample(Sample("s/1", {**world.clean.arrays, name: filled}), world.rules)
            assert any(finding.blocks for finding in findings), name


def test_each_source_of_one_form_is_judged_alike(worlds: dict[str, World]) -> None:
    world = worlds["front3d"]
    broken = mutated(world.clean, turn)
    expected = check_sample(broken, world.rules)[0]
    for source in ROOM_SOURCES:
        if raw_orientation(source) == (0, 1):
            assert check_sample(broken, replace(world.rules, source=source))[0] == expected


def test_labels_that_a_rule_does_not_know_are_told(worlds: dict[str, World]) -> None:
    world = worlds["front3d"]
    few = tuple(label for label in LABELS if label.id != 3)
    findings, _ = check_sample(world.clean, replace(world.rules, labels=few))
    assert {(finding.check, finding.field, finding.observed) for finding in findings if finding.blocks} >= {
        ("label_known", "semantic_2d", "class ids 3"),
        ("label_known", "semantic_3d", "class ids 3"),
    }


# --- what is counted


def tiny() -> tuple[Sample, Rules]:
    """A volume of 16 voxels a side and an image of 12 x 16 pixels, small enough to count by hand.

    Pixel (row v, column u) looks at voxel (u, v, 10 * depth). Voxels x < 8, z = 5 are surface, those behind (z = 6) near it;
    those at x >= 8, z = 5 are one voxel from a surface, and so not on it. The frustum holds y < 10.
    """
    rows, columns = np.mgrid[0:12, 0:16]
    depth = np.full((12, 16), 0.5, np.float32)
    depth[0, 0], depth[0, 1], depth[11, 15] = 0.0, 0.75, 1.625  # invalid; off the surface; just behind the grid
    geometry = np.full((16,) * 3, 12.0, np.float32)
    geometry[:8, :, 5], geometry[:8, :, 6], geometry[8:, :, 5] = 0.25, 2.5, 1.0
    semantic, instance = np.zeros((16,) * 3, np.uint8), np.zeros((16,) * 3, np.uint16)
    semantic[:8, :8, 5], semantic[:8, 8:, 5] = WALL, 3
    instance[:4, 8:, 5], instance[4:8, 8:, 5] = 7, 300
    frustum = np.zeros((16,) * 3, np.bool_)
    frustum[:, :10] = True
    arrays: Arrays = {
        "depth": depth,
        "semantic_2d": np.where(rows < 9, WALL, 3).astype(np.uint8),
        "instance_2d": np.where(rows < 9, 2, 7).astype(np.uint16),
        "geometry": geometry,
        "semantic_3d": semantic,
        "instance_3d": instance,
        "intrinsics": np.arange(16.0).reshape(4, 4),
    }
    rules = Rules("front3d", 16, (12, 16), frustum, lambda sample: np.stack([columns, rows, sample["depth"] * 10]))
    return Sample("s/1", arrays), rules


def test_facts_are_what_a_hand_counts() -> None:
    sample, rules = tiny()
    assert Measured(sample, rules).facts() == {
        "fields": ["depth", "semantic_2d", "instance_2d", "geometry", "semantic_3d", "instance_3d", "intrinsics"],
        "grid": 16,
        "image_height_pixel": 12,
        "image_width_pixel": 16,
        "intrinsics": [float(i) for i in range(16)],
        "world_from_camera": None,
        "classes_2d": [3, 10],
        "classes_3d": [3, 10],
        "instances_2d": [2, 7],
        "instances_3d": [0, 7, 300],
        "things_2d": 1,
        "things_3d": 2,
        "depth_min_m": 0.5,
        "depth_max_m": 1.625,
        "depth_valid_share": 191 / 192,
        "geometry_min_voxel": 0.25,
        "geometry_max_voxel": 12.0,
        "voxels_observed": 3 * 8 * 16,
        "voxels_occupied": 8 * 16,
        "voxels_labelled": 8 * 16,
        "depth_on_surface_share": (8 * 10 - 2) / (16 * 10 - 1),
        "labels_agree_share": (8 * 8 - 2 + 8 * 3) / (8 * 12 - 2),
    }


def test_pairs_and_agreements_are_what_a_hand_counts() -> None:
    measured = Measured(*tiny())
    assert measured.pairs_2d.tolist() == [[2, WALL, 9 * 16], [7, 3, 3 * 16]]
    assert measured.pairs_3d.tolist() == [[0, WALL, 8 * 8], [7, 3, 4 * 8], [300, 3, 4 * 8]]
    assert measured.class_agreement == (8 * 8 - 2 + 8 * 3, 8 * 12 - 2)
    assert measured.instance_agreement == (4 * 3, 8 * 3)
    assert (int(np.count_nonzero(measured.seen[0])), int(np.count_nonzero(measured.inside))) == (16 * 12 - 2, 16 * 10 - 1)
    assert measured.seen[1][16 * 3 + 2] == (2 * 16 + 3) * 16 + 5


def test_facts_of_signed_distances_reach_down_to_the_fill() -> None:
    sample, rules = tiny()
    geometry = np.full((16,) * 3, -12.0, np.float32)
    geometry[0, 0, :4] = -3.0, 0.5, -0.5, 11.0
    facts = Measured(
        Sample("s/1", {**sample.arrays, "geometry": geometry, "outside": geometry == -12.0}),
        replace(rules, source="matterport", frustum=None),
    ).facts()
    assert (facts["geometry_min_voxel"], facts["geometry_max_voxel"]) == (-12.0, 11.0)
    assert (facts["voxels_observed"], facts["voxels_occupied"]) == (4, 2)


def test_pose_is_a_fact_where_there_is_one() -> None:
    sample, rules = tiny()
    pose = np.arange(16.0).reshape(4, 4)
    assert Measured(Sample("s/1", {**sample.arrays, "world_from_camera": pose}), rules).facts()["world_from_camera"] == list(
        range(16)
    )


@pytest.mark.parametrize("instance", [1, 255, 256, 65535])
def test_any_instance_id_above_0_is_one(instance: int, worlds: dict[str, World]) -> None:
    def rename(a: Arrays) -> None:
        old = both(a)[0][0]
        for name in ("instance_2d", "instance_3d"):
            assert not (a[name] == instance).any()
            a[name][a[name] == old] = instance

    world = worlds["front3d"]
    renamed = mutated(world.clean, rename)
    spoken, _ = listen(renamed, world.rules)
    assert spoken == {}
    assert instance in Measured(renamed, world.rules).facts()["instances_3d"]


# --- borders


def found_in(sample: Sample, rules: Rules) -> dict[str, list[str]]:
    return {name: [finding.observed for finding in found] for name, found in listen(sample, rules)[0].items()}


def test_labels_end_below_1_and_heavy_weights_below_3() -> None:
    sample, rules = tiny()
    geometry = sample["geometry"].copy()
    geometry[:8, :, 7] = 3.0
    weighting = np.where(geometry < 3, 5, 1).astype(np.uint8)
    inside = replace(rules, frustum=np.ones((16,) * 3, np.bool_))
    told = found_in(Sample("s/1", {**sample.arrays, "geometry": geometry, "weighting": weighting}), inside)
    assert not {"labels_on_surface", "weights_near_surface"} & set(told)


@pytest.mark.parametrize(
    ("values", "steep"),
    [
        ({(5, 5, 5): 1.0, (5, 5, 6): 4.0}, 1),
        ({(5, 5, 14): 1.0, (5, 5, 15): 4.0}, 1),  # at the end of an axis
        ({(5, 14, 5): 1.0, (5, 15, 5): 4.0}, 1),
        ({(14, 5, 5): 1.0, (15, 5, 5): 4.0}, 1),
        ({(5, 5, 15): 1.0, (5, 6, 0): 4.0}, 0),  # beside each other in memory alone
        ({(5, 15, 5): 1.0, (6, 0, 5): 4.0}, 0),
        ({(5, 5, 5): 1.0, (5, 6, 6): 4.0}, 0),  # across a corner
        ({(5, 5, 5): 1.0, (5, 5, 6): 2.0}, 0),
        ({(5, 5, 5): 4.0, (5, 5, 6): 1.0, (5, 6, 5): 1.0, (6, 5, 5): 1.0}, 3),
    ],
)
def test_neighbours_are_those_along_the_axes(values: dict[Voxel, float], steep: int) -> None:
    _, rules = tiny()
    geometry = np.full((16,) * 3, 12.0, np.float32)
    for place, value in values.items():
        geometry[place] = value
    told = found_in(Sample("s/1", {"geometry": geometry}), rules).get("distance_smooth", [])
    assert told == ([f"{steep} neighbours more than 1 voxel apart"] if steep else [])


def test_the_ends_of_the_ranges_are_inside(worlds: dict[str, World]) -> None:
    def stretch(a: Arrays) -> None:
        a["depth"][0, :2] = 0.4, 6.0
        a["geometry"][far(a)] = 11.99

    world = worlds["front3d"]
    assert listen(mutated(world.clean, stretch), world.rules)[0] == {}


def test_the_promises_of_the_3d_front_form_are_asked_of_no_other() -> None:
    assert {check.name for check in CHECKS if check.front3d_only} == {
        "one_floor",
        "same_class",
        "things_have_instances",
        "distance_smooth",
        "surface_in_frustum",
        "labels_on_surface",
        "weights_near_surface",
        "weights_outside",
    }


@pytest.mark.parametrize(("share", "told"), [(0.5, False), (0.499, True), (0.99, False), (0.991, True)])
def test_half_of_the_grid_to_all_but_a_hundredth_lies_outside(share: float, told: bool) -> None:
    outside = np.zeros((20, 50, 10), np.bool_)
    outside.reshape(-1)[: round(share * outside.size)] = True
    assert ("outside" in found_in(Sample("s/1", {"outside": outside}), tiny()[1])) == told


@pytest.mark.parametrize(("pixels_of_thing", "told"), [(200, True), (201, False)])
def test_a_thing_of_200_pixels_is_small(pixels_of_thing: int, told: bool) -> None:
    semantic, instance = np.full((20, 20), WALL, np.uint8), np.ones((20, 20), np.uint16)
    semantic.reshape(-1)[:pixels_of_thing], instance.reshape(-1)[:pixels_of_thing] = 3, 7
    found = found_in(Sample("s/1", {"semantic_2d": semantic, "instance_2d": instance}), tiny()[1])
    assert found.get("small_thing") == (["instances 7 of at most 200 pixels"] if told else None)
