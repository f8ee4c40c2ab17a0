"""Made-up rooms in the raw layout that ``rgbd_source.py`` reads, to try it without any data.

python examples/rgbd_world.py raw --scenes 3 --views 4
"""

import argparse
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from scenemill import Sample, write_world
from scenemill.transforms.sources import list_samples, open_source, read_sample

NYU_OF_CLASS = np.array([0, 3, 4, 5, 6, 7, 14, 17, 35, 39, 1, 2, 22], np.uint16)


def write_rgbd_world(out: Path, scenes: int = 3, views: int = 2, seed: int = 0) -> None:
    """Write rooms; the same arguments give the same bytes. Every second view has a map of confidence, the first of all no pose."""
    lists: dict[str, dict[str, None]] = defaultdict(dict)
    with TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_world("front3d", world, scenes=scenes, views=views, seed=seed, grid=64)
        listed, _ = list_samples("front3d", world)
        source = open_source("front3d", world, listed)
        for number, one in enumerate(listed):
            scene, image = one.key.split("/")
            lists["val" if one.splits[0] == "test" else one.splits[0]][scene] = None
            write_view(out / scene, image, read_sample(source, one)[0], lost=number == 0, confident=number % 2 == 0)
    for split in ("train", "val"):
        (out / f"{split}.txt").write_text("".join(f"{scene}\n" for scene in lists[split]))


def write_view(scene: Path, image: str, sample: Sample, *, lost: bool, confident: bool) -> None:
    """Write the files of one view."""
    maps = {
        "color": sample["rgb"],
        "depth": np.rint(1000 * sample["depth"]).astype(np.uint16),
        "label": NYU_OF_CLASS[sample["semantic_2d"]],
        "instance": sample["instance_2d"],
    }
    if confident:
        maps["confidence"] = np.where(sample["depth"] < 2.5, 2, 1).astype(np.uint8)
    for kind, pixels in maps.items():
        (scene / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(scene / kind / f"{image}.png")
    (scene / "pose").mkdir(exist_ok=True)
    if not lost:
        np.savetxt(scene / "pose" / f"{image}.txt", sample["world_from_camera"])
    np.savetxt(scene / "intrinsics.txt", sample["intrinsics"][:3, :3])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write made-up rooms as RGB-D video.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_rgbd_world(given.out, given.scenes, given.views, given.seed)
