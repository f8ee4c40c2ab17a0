"""A real Triton server with an exported repository, asked by the client example over HTTP.

Needs the server of nvidia-pytriton in an environment of its own, which SCENEMILL_TRITON names; see docs/serving.md. It has no backend
but Python's, so stage 1 runs by that.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from scenemill.pipelines.experiments.specs import load_spec
from scenemill.pipelines.experiments.triton import SCENE, STAGE_1, export_triton
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.checkpoint import save_checkpoint
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
from scenemill.trainers.predict import predict_scenes, prepare_image, stack_images
from scenemill.trainers.stages import make_stage2
from scenemill.transforms.geometry import FRONT3D_INTRINSICS

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "pipelines" / "experiments" / "shipped" / "tiny_front3d_3d.yaml"
ENVIRONMENT = os.environ.get("SCENEMILL_TRITON", "")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARIES = sysconfig.get_config_var("LIBDIR") or ""
K = np.array(FRONT3D_INTRINSICS)
_PATIENCE_S = 240.0

pytestmark = [
    pytest.mark.skipif(not ENVIRONMENT, reason="no Triton server: name an environment with nvidia-pytriton by SCENEMILL_TRITON"),
    pytest.mark.skipif(
        not Path(LIBRARIES, f"libpython{PYTHON}.so.1.0").is_file(),
        reason="this Python has no shared library, which the server links",
    ),
]


@contextmanager
def served(repository: Path, folder: Path) -> Iterator[str]:
    """A server of a repository on a free port of this machine; its host and port."""
    (site,) = Path(ENVIRONMENT).resolve().glob("lib/python3*/site-packages")
    home = site / "pytriton" / "tritonserver"
    backends = shutil.copytree(home / "backends", folder / "backends")
    shutil.copy(home / "python_backend_stubs" / PYTHON / "triton_python_backend_stub", backends / "python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the server looks for packages beside the first python3
        "LD_LIBRARY_PATH": f"{LIBRARIES}:{site / 'nvidia_pytriton.libs'}",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}/v2/health/ready", folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server is not ready; its log ends: {log.read_text(errors='replace')[-4000:]}")


@dataclass(frozen=True)
class Served:
    config: ExperimentConfig
    model: Stage2
    repository: Path
    url: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("triton")
    given = [
        "model.backbone.input_width=112",
        "model.object_mask_threshold=0",
        "model.overlap_threshold=0",
        "export.batch_size=-1",
        "export.on_cpu=true",
    ]
    config = load_spec(SPEC, [*given, f"export.checkpoint={folder / 'stage2.pth'}"])
    torch.manual_seed(0)
    model = make_stage2(config).eval()
    with torch.no_grad():  # so that there are several segments, and depths that vary
        predictor: Any = model.sem_seg_head.predictor
        last: Any = model.backbone.depth_head.scratch.output_conv2[2]
        predictor.class_embed.weight.mul_(20)
        predictor.mask_embed.layers[-1].weight.mul_(20)
        last.weight.mul_(20)
        last.bias[0] = 1
    save_checkpoint(folder / "stage2.pth", {"state_dict": model.state_dict()})
    export_triton(config, folder / "models", backend="python", max_batch_size=4)
    with served(folder / "models", folder) as url:
        yield Served(config, model, folder / "models", url)


def picture() -> NDArray[np.uint8]:
    squares = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.kron(squares, np.ones((40, 40, 1), np.uint8))


def test_client_gets_from_a_real_server_what_is_predicted_in_process(scene: Served, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "room.png")
    script = [sys.executable, str(ROOT / "examples" / "triton_client.py"), str(tmp_path / "room.png")]
    done = subprocess.run(
        [*script, "--url", scene.url, "--output", str(tmp_path / "found")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    got = {path.stem: np.load(path) for path in (tmp_path / "found").iterdir()}
    view = prepare_image(picture(), scene.config.dataset)
    ((image, volume),) = predict_scenes(scene.model, stack_images([view.rgb]), [view.unpadded_shape], scene.config, K[None], None)
    assert len(image.segments) > 1 and len(volume.segments) > 1 and (volume.distance < 3).sum() > 1000  # worth comparing
    assert set(got) == {"panoptic_seg_2d", "depth_2d", "panoptic_seg_3d", "geometry_3d", "semantic_seg_3d"}
    assert np.array_equal(got["panoptic_seg_2d"], image.panoptic_seg.numpy())
    assert np.abs(got["depth_2d"] - image.depth.numpy()).max() <= 1e-4
    # a voxel whose occupancy is at one half is there or is not, and its neighbours follow
    assert (np.abs(got["geometry_3d"] - volume.distance.numpy()) > 1e-3).mean() <= 1e-3
    assert (got["panoptic_seg_3d"] != volume.panoptic.numpy()).mean() <= 1e-3
    assert (got["semantic_seg_3d"] != volume.semantic.numpy()).mean() <= 1e-3


def test_real_server_tells_a_client_what_is_wrong_and_goes_on(scene: Served, tmp_path: Path) -> None:
    client = triton.InferenceServerClient(scene.url, network_timeout=_PATIENCE_S)
    skewed = K.copy()
    skewed[0, 1] = 5
    for camera, words in ((np.zeros((4, 4)), "focal lengths above 0"), (skewed, r"allowed is \(\(f, 0, c\)")):
        with pytest.raises(InferenceServerException, match=words):
            client.infer(SCENE, inputs_of(camera))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'intrinsic'"):
        client.infer(SCENE, inputs_of(K[:3]))
    assert client.infer(SCENE, inputs_of(K)).as_numpy("geometry_3d").shape == (64, 64, 64)


def inputs_of(camera: NDArray[np.float64]) -> list[Any]:
    arrays = {
        "image": ("UINT8", picture()[None]),
        "frustum_mask": ("BOOL", np.ones((1, 64, 64, 64), np.bool_)),
        "intrinsic": ("FP32", camera[None].astype(np.float32)),
    }
    made = []
    for name, (kind, array) in arrays.items():
        made.append(triton.InferInput(name, list(array.shape), kind))
        made[-1].set_data_from_numpy(array)
    return made


def test_real_server_answers_each_of_many_clients_about_its_own_image(scene: Served) -> None:
    images = np.random.default_rng(1).random((6, 1, 3, 256, 320), np.float32) * 255
    session = ort.InferenceSession(str(scene.repository / STAGE_1 / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    client = triton.InferenceServerClient(scene.url, concurrency=len(images), network_timeout=_PATIENCE_S)
    asked = []
    for image in images:
        sent = triton.InferInput("batch_inputs", list(image.shape), "FP32")
        sent.set_data_from_numpy(image)
        asked.append(client.async_infer(STAGE_1, [sent]))
    for image, answer in zip(images, asked, strict=True):
        got = answer.get_result()
        for name in ("pred_logits", "encoder_features"):
            (expected,) = session.run([name], {"batch_inputs": image})
            assert np.abs(got.as_numpy(name) - expected).max() <= 1e-3
    client.close()
