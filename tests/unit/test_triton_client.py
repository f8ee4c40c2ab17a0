"""The client example: what it sends, what it saves, and what it says when a server is not there."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from scenemill.pipelines.experiments.photos import read_image
from scenemill.trainers.augment import resize_rgb
from scenemill.trainers.nvpanoptix3d.frustum import Frustum, inference_mask
from scenemill.transforms.geometry import FRONT3D_INTRINSICS

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"UINT8": np.uint8, "BOOL": np.bool_, "FP32": np.float32}
GRID = 16


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("triton_client", ROOT / "examples" / "triton_client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Http:
    """The client's side of a server: tensors travel as bytes. It answers with what it got."""

    error: Exception | None = None

    def __init__(self, url: str, **_: float) -> None:
        self.url = url
        self.arrays: dict[str, NDArray[Any]] = {}

    def get_model_metadata(self, name: str) -> dict[str, Any]:
        assert name == "nvpanoptix3d"
        shapes = {"image": [1, 240, 320, 3], "frustum_mask": [1, GRID, GRID, GRID], "intrinsic": [1, 4, 4]}
        inputs = [{"name": name, "shape": shape} for name, shape in shapes.items()]
        return {"inputs": inputs, "outputs": [{"name": name} for name in shapes]}

    def infer(self, name: str, inputs: Sequence[Any]) -> "Http":
        assert name == "nvpanoptix3d"
        if self.error is not None:
            raise self.error
        for sent in inputs:
            self.arrays[sent.name()] = np.frombuffer(sent._get_binary_data(), DTYPES[sent.datatype()]).reshape(sent.shape())
        return self

    def as_numpy(self, name: str) -> NDArray[Any]:
        return self.arrays[name]


def run(example: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(example.triton, "InferenceServerClient", Http)
    monkeypatch.setattr(sys, "argv", ["triton_client.py", *arguments])
    example.main()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    squares = np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(np.kron(squares, np.ones((80, 80, 1), np.uint8))).save(tmp_path / "room.jpg")
    return tmp_path / "room.jpg"


@given(st.sampled_from([8, 16, 64]), st.floats(100, 600), st.floats(100, 600), st.floats(0, 320), st.floats(0, 240))
@settings(deadline=None, max_examples=50)
def test_frustum_mask_is_that_of_inference(example: Any, grid: int, fx: float, fy: float, cx: float, cy: float) -> None:
    camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    expected = inference_mask(camera, Frustum(grid=grid, voxel_m=7.68 / grid)).numpy()
    assert np.array_equal(example.frustum_mask(camera, (320, 240), grid), expected)


def test_what_is_sent_is_what_inference_takes_and_every_answer_is_saved(
    example: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(example, monkeypatch, str(photo), "--output", str(tmp_path / "new" / "found"))
    got = {path.name: np.load(path) for path in (tmp_path / "new" / "found").iterdir()}
    assert set(got) == {"image.npy", "frustum_mask.npy", "intrinsic.npy"}
    assert np.array_equal(got["image.npy"][0], resize_rgb(read_image(photo), (320, 240), "bicubic"))
    camera = np.array(FRONT3D_INTRINSICS)
    assert np.array_equal(got["intrinsic.npy"][0], camera.astype(np.float32))
    frustum = inference_mask(camera, Frustum(grid=GRID, voxel_m=7.68 / GRID)).numpy()
    assert frustum.any() and np.array_equal(got["frustum_mask.npy"][0], frustum)
    assert "image  uint8 (1, 240, 320, 3)" in capsys.readouterr().out


def test_another_camera_counts_for_the_mask_as_well(
    example: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(example, monkeypatch, str(photo), "--output", str(tmp_path), "--camera", "200", "210", "150", "110")
    camera = np.array([[200, 0, 150, 0], [0, 210, 110, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert np.array_equal(np.load(tmp_path / "intrinsic.npy")[0], camera)
    frustum = inference_mask(camera, Frustum(grid=GRID, voxel_m=7.68 / GRID)).numpy()
    assert np.array_equal(np.load(tmp_path / "frustum_mask.npy")[0], frustum)


@pytest.mark.parametrize("error", [ConnectionRefusedError("refused"), InferenceServerException("refused")])
def test_what_goes_wrong_is_one_line(
    example: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(Http, "error", error)
    with pytest.raises(SystemExit, match=r"^nowhere:1, .*room\.jpg: .*refused$"):
        run(example, monkeypatch, str(photo), "--url", "nowhere:1", "--output", str(tmp_path / "found"))
    assert not (tmp_path / "found").exists()
    with pytest.raises(SystemExit, match=r"nothing\.png"):
        run(example, monkeypatch, str(tmp_path / "nothing.png"))
