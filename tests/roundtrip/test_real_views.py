"""The real views, ingested and held against the raw files, read by the plainest means."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenemill import Store, open_store
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.places import on_disk
from scenemill.transforms.verify import verify_store

pytestmark = pytest.mark.real


def stored(source: str, raw: Path, store: Path) -> Store:
    outcome = ingest(IngestConfig(source, raw, store, samples_per_part=8))
    assert (outcome.listed, outcome.rejected) == (outcome.stored, 0)
    assert verify_store(store).broken == ()
    return open_store(store)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.full)])
def test_every_value_of_the_real_front3d_views_is_stored(every: int, real_data: Path, tmp_path: Path) -> None:
    raw = real_data / "data" / "front3d"
    store = stored("front3d", raw, tmp_path / "store")
    assert len(store) == len(list((raw / "data").glob("*/rgb_*.png")))
    for key in store.keys[::every]:
        scene, image = key.split("/")
        folder, sample = raw / "data" / scene, store.read(key)
        segmap = np.load(folder / f"segmap_{image}.mapped.npz")["data"]
        geometry = np.load(folder / f"geometry_{image}.npz")["data"]
        segmentation = np.load(folder / f"segmentation_{image}.mapped.npz")["data"]
        expected = {
            "rgb": np.asarray(Image.open(folder / f"rgb_{image}.png")),
            "semantic_2d": segmap[..., 0],
            "instance_2d": segmap[..., 1],
            "geometry": geometry[::-1, ::-1].astype(np.float32),
            "semantic_3d": segmentation[0, ::-1, ::-1],
            "instance_3d": segmentation[1, ::-1, ::-1],
            "weighting": np.load(folder / f"weighting_{image}.npz")["data"][::-1, ::-1],
        }
        for name, array in expected.items():
            np.testing.assert_array_equal(sample[name], array, err_msg=f"{key} {name}")
        if (folder / f"campose_{image}.npz").is_file():
            pose = np.load(folder / f"campose_{image}.npz")
            np.testing.assert_array_equal(sample["world_from_camera"], pose["camera2world"])
            np.testing.assert_array_equal(np.reshape(sample.facts["campose"]["blender_matrix"], (4, 4)), pose["blender_matrix"])
    size = sum(file.stat().st_size for file in on_disk(store.root).rglob("*") if file.is_file() and "runs" not in file.parts)
    assert size <= 0.42 * sum(store.samples["raw_byte"].to_pylist())


def test_every_value_of_the_real_matterport_view_is_stored(real_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    given = real_data / "data" / "matterport"
    for tree, target in (("data", "data"), ("depth_gen", "depth_gen"), ("room_mask", "room_mask_derived")):
        (raw / tree).symlink_to((given / target).resolve(), target_is_directory=True)
    (raw / "val.json").write_bytes((given / "val.json").read_bytes())
    store = stored("matterport", raw, tmp_path / "store")
    for key in store.keys:
        scene, image = key.split("/")
        name, angle, rot = image.split("_")
        folder, sample, view = raw / "data" / scene, store.read(key), f"{angle}_{rot}"
        segmap = np.load(folder / f"{name}_segmap{view}.mapped.npz")["data"]
        geometry = np.load(folder / f"{name}_geometry{view}.npz")
        segmentation = np.load(folder / f"{name}_segmentation{view}.mapped.npz")["data"]
        expected = {
            "rgb": np.asarray(Image.open(folder / f"{name}_i{view}.jpg")),
            "semantic_2d": segmap[..., 0],
            "instance_2d": segmap[..., 1],
            "room": segmap[..., 2],
            "intrinsics": np.load(folder / f"{name}_intrinsics_{angle}.npy"),
            "geometry": geometry["data"],
            "outside": geometry["mask"],
            "semantic_3d": segmentation[0],
            "instance_3d": segmentation[1],
            "weighting": np.load(folder / f"{name}_weighting{view}.npz")["data"],
            "room_mask": np.asarray(Image.open(raw / "room_mask" / scene / f"{name}_rm{view}.png")),
        }
        for field, array in expected.items():
            np.testing.assert_array_equal(sample[field], array, err_msg=field)
        units = np.asarray(Image.open(raw / "depth_gen" / scene / f"{name}_d{view}.png"))
        np.testing.assert_array_equal(np.rint(sample["depth"].astype(np.float64) * 4000), units)
        np.testing.assert_allclose(sample["depth"], units / 4000, rtol=1e-7)
    told = set(store.findings["check"].to_pylist())
    assert "depth_on_surface" in told  # this view's depth is the sensor's, which does not lie on the surface
