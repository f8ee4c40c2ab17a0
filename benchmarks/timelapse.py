"""3D checkpoints against the way that Kaolin 0.18 takes: for each sample and call a stage opened, set attribute by attribute, and saved.

Run: python benchmarks/timelapse.py [ITERATIONS [NAIVE_ITERATIONS]]. 8 samples a batch, 10 000 vertices or points, 20 000 faces, voxels 64^3
at 5 %. Each row and way in a process of its own, one core's CPU time; bytes beside those of the arrays handed in (float32 and int32). The
naive way is written here from the layout of its files and what it is known to do: tensors go into USD through Python lists.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pxr import Sdf, Usd, UsdGeom, Vt

from scenemill import Timelapse
from scenemill.trainers.timelapse import TimelapseParser

SAMPLES, VERTICES, FACES, GRID, SHARE = 8, 10_000, 20_000, 64, 0.05
Batch = dict[str, list[torch.Tensor]]


def drawn(seed: int, *size: int) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.random.default_rng(seed).standard_normal((SAMPLES, *size), np.float32)))


TOPOLOGY = list(torch.from_numpy(np.random.default_rng(7).integers(0, VERTICES, (SAMPLES, FACES, 3))))


def meshes_once(iteration: int) -> Batch:
    return {"vertices_list": drawn(iteration, VERTICES, 3), **({} if iteration else {"faces_list": TOPOLOGY})}


def meshes_each(iteration: int) -> Batch:
    return {"vertices_list": drawn(iteration, VERTICES, 3), "faces_list": TOPOLOGY}


def meshes_new(iteration: int) -> Batch:
    return {"vertices_list": drawn(iteration, VERTICES, 3), "faces_list": [faces.roll(iteration, 0) for faces in TOPOLOGY]}


def clouds(iteration: int) -> Batch:
    return {"pointcloud_list": drawn(iteration, VERTICES, 3)}


def growing_clouds(iteration: int) -> Batch:
    return {"pointcloud_list": drawn(iteration, VERTICES + 10 * iteration, 3)}


def colored_clouds(iteration: int) -> Batch:
    return {**clouds(iteration), "colors": [points.sigmoid() for points in drawn(10**6 + iteration, VERTICES, 3)]}


def grids(iteration: int) -> Batch:
    occupied = np.random.default_rng(iteration).random((SAMPLES, GRID, GRID, GRID), np.float32) < SHARE
    return {"voxelgrid_list": list(torch.from_numpy(occupied))}


def naive_stage(path: Path, kind: str) -> Any:
    if path.exists():
        return Usd.Stage.Open(str(path))
    stage = Usd.Stage.CreateNew(str(path))
    stage.DefinePrim("/World", "Xform")
    stage.SetDefaultPrim(stage.DefinePrim(f"/{path.stem}", kind))
    UsdGeom.SetStageUpAxis(stage, "Y")
    return stage


def naive_mesh(stage: Any, prim: Any, iteration: int, parts: dict[str, torch.Tensor]) -> None:
    mesh = UsdGeom.Mesh(prim)
    if "faces_list" in parts:
        faces = parts["faces_list"]
        mesh.GetFaceVertexCountsAttr().Set([faces.shape[1]] * len(faces), time=iteration)
        mesh.GetFaceVertexIndicesAttr().Set(faces.reshape(-1).numpy(), time=iteration)
    mesh.GetPointsAttr().Set(Vt.Vec3fArray.FromNumpy(parts["vertices_list"].numpy()), time=iteration)


def naive_width(points: torch.Tensor) -> float:
    return float((points.amax(0) - points.amin(0)).min() / len(points) ** (1 / 3))


def naive_instances(stage: Any, prim: Any, iteration: int, points: torch.Tensor, width: float, shape: str) -> None:
    instancer = UsdGeom.PointInstancer(prim)
    child = stage.DefinePrim(prim.GetPath().AppendChild(shape.lower()), shape)
    instancer.CreatePrototypesRel().SetTargets([child.GetPath()])
    instancer.GetProtoIndicesAttr().Set([0] * len(points), time=iteration)
    instancer.GetPositionsAttr().Set(points.tolist(), time=iteration)
    instancer.GetScalesAttr().Set([(width,) * 3] * len(points), time=iteration)


def naive_cloud(stage: Any, prim: Any, iteration: int, parts: dict[str, torch.Tensor]) -> None:
    points = parts["pointcloud_list"]
    naive_instances(stage, prim, iteration, points, naive_width(points), "Sphere")


def naive_points(stage: Any, prim: Any, iteration: int, parts: dict[str, torch.Tensor]) -> None:
    points, widths = UsdGeom.Points(prim), np.full(len(parts["pointcloud_list"]), naive_width(parts["pointcloud_list"]))
    points.GetPointsAttr().Set(parts["pointcloud_list"].tolist(), time=iteration)
    points.GetWidthsAttr().Set(Vt.FloatArray.FromNumpy(widths), time=iteration)
    points.GetDisplayColorAttr().Set(parts["colors"].tolist(), time=iteration)


def naive_grid(stage: Any, prim: Any, iteration: int, parts: dict[str, torch.Tensor]) -> None:
    grid = parts["voxelgrid_list"]
    naive_instances(stage, prim, iteration, torch.nonzero(grid).float(), 1.0, "Cube")
    place = UsdGeom.Xformable(prim)
    ops = place.GetOrderedXformOps() or [place.AddScaleOp(), place.AddTranslateOp()]
    ops[0].Set((1 / (len(grid) - 1),) * 3, time=iteration)
    ops[1].Set((-0.5,) * 3, time=iteration)
    UsdGeom.PrimvarsAPI(prim).CreatePrimvar("grid_size", Sdf.ValueTypeNames.Int).Set(len(grid))


class Workload(NamedTuple):
    """A row: what it says, its batches, the writer's method and further arguments, the naive way, the type of prim, and the bar of time."""

    says: str
    batch: Callable[[int], Batch]
    method: str
    more: dict[str, str]
    naive: Callable[[Any, Any, int, dict[str, torch.Tensor]], None]
    kind: str
    bar: float


GEOM_POINTS = {"points_type": "usd_geom_points"}
WORKLOADS = {
    "once": Workload("meshes, topology once", meshes_once, "add_mesh_batch", {}, naive_mesh, "Mesh", 1.5),
    "each": Workload("meshes, the same faces each iteration", meshes_each, "add_mesh_batch", {}, naive_mesh, "Mesh", 0.2),
    "new": Workload("meshes, other faces each iteration", meshes_new, "add_mesh_batch", {}, naive_mesh, "Mesh", 0.2),
    "clouds": Workload("point clouds, instances", clouds, "add_pointcloud_batch", {}, naive_cloud, "PointInstancer", 0.2),
    "growing": Workload("the same, growing", growing_clouds, "add_pointcloud_batch", {}, naive_cloud, "PointInstancer", 0.2),
    "points": Workload("points with colours", colored_clouds, "add_pointcloud_batch", GEOM_POINTS, naive_points, "Points", 0.2),
    "grids": Workload("voxel grids", grids, "add_voxelgrid_batch", {}, naive_grid, "PointInstancer", 0.2),
}


def payload(batch: Batch) -> int:
    """Bytes of the arrays as float32 and int32; of a voxel grid the coordinates of the occupied voxels."""
    return sum(
        int(part.count_nonzero()) * 12 if part.dtype == torch.bool else part.numel() * 4
        for parts in batch.values()
        for part in parts
    )


def write(row: Workload, way: str, folder: Path, iterations: int) -> tuple[float, int]:
    """CPU seconds of all calls, and the bytes handed in."""
    spent, handed = 0.0, 0
    writer = Timelapse(folder)
    for iteration in range(iterations):
        batch = row.batch(iteration)
        handed += payload(batch)
        start = time.process_time()
        if way == "ours":
            getattr(writer, row.method)(iteration, "", **batch, **row.more)
        else:
            for number in range(SAMPLES):
                stage = naive_stage(folder / f"{row.method.split('_')[1]}_{number}.usd", row.kind)
                stage.SetEndTimeCode(iteration)
                row.naive(stage, stage.GetDefaultPrim(), iteration, {name: parts[number] for name, parts in batch.items()})
                stage.Save()
        spent += time.process_time() - start
    return spent, handed


def read(row: Workload, way: str, folder: Path, iterations: int) -> float:
    """CPU seconds of reading the first sample at every iteration: ours all there is, the naive way only its points."""
    kind = row.method.split("_")[1]
    parser = TimelapseParser(folder)
    start = time.process_time()
    for iteration in range(iterations):
        if way == "ours":
            parser.read(kind, "", 0, iteration)
        else:
            stage = Usd.Stage.Open(parser.filepaths[kind, "", 0])
            points = stage.GetDefaultPrim().GetAttribute("positions" if row.kind == "PointInstancer" else "points").Get(iteration)
            torch.from_numpy(np.array(points)) if row.kind == "Mesh" else torch.tensor(points)
    return time.process_time() - start


def run(name: str, way: str, iterations: int) -> dict[str, float]:
    """One row, one way, in this process."""
    row = WORKLOADS[name]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "log").mkdir()
        write(row, way, Path(folder) / "log", 1)  # uncounted: libraries load
    with tempfile.TemporaryDirectory() as folder:
        spent, handed = write(row, way, Path(folder), iterations)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.usd"))
        reading = read(row, way, Path(folder), iterations)
    items = iterations * SAMPLES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": 1000 * spent / items, "share": size / handed, "read": 1000 * reading / iterations, "peak": peak}


def in_process(name: str, way: str, iterations: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--run", name, way, str(iterations)], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(iterations: int = 100, naive_iterations: int = 100) -> None:
    head = "what | ours ms | naive ms | ratio | bar | bytes / handed in | naive | ratio | read ms | naive | MiB, half as long | MiB"
    print(f"| {head} |\n|{'---|' * 12}")
    for name, row in WORKLOADS.items():
        naive, ours = in_process(name, "naive", naive_iterations), in_process(name, "ours", iterations)
        half = in_process(name, "ours", iterations // 2)
        times = f"{ours['ms']:.2f} | {naive['ms']:.2f} | {ours['ms'] / naive['ms']:.3f} | <= {row.bar}"
        sizes = f"{ours['share']:.2f} | {naive['share']:.2f} | {ours['share'] / naive['share']:.2f}"
        reads = f"{ours['read']:.2f} | {naive['read']:.2f} | {half['peak']:.0f} | {ours['peak']:.0f}"
        print(f"| {row.says} | {times} | {sizes} | {reads} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(run(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main(*(int(argument) for argument in sys.argv[1:]))
