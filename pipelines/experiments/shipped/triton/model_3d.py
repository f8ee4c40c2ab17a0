"""A scene for a Triton server: the image to stage 1, which is a model of its own on the same server, and what that says into space.

The server's Python needs scenemill, torch and Pillow.

Source: the interface of Triton's Python backend, and its way to call another model (Business Logic Scripting).
"""

from pathlib import Path
from typing import Any

import numpy as np

from scenemill.pipelines.experiments.specs import load_spec
from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.export import INPUT
from scenemill.trainers.serving import FEATURES, Completer

STAGE_1 = "nvpanoptix3d_2d"


class TritonPythonModel:
    """One image at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights of stage 2 on the device of this instance."""
        folder = Path(args["model_repository"]) / args["model_version"]
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.completer = Completer(load_spec(folder / "spec.yaml"), folder, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; what is wrong with one is told to its client alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as triton

        image, frustum_mask, intrinsic = (_read(request, name) for name in ("image", "frustum_mask", "intrinsic"))
        images = triton.Tensor.from_dlpack(INPUT, self.completer.prepare(image))
        call = triton.InferenceRequest(model_name=STAGE_1, requested_output_names=list(FEATURES), inputs=[images])
        said = call.exec()
        if said.has_error():
            return triton.InferenceResponse(error=said.error())
        features = {name: triton.get_output_tensor_by_name(said, name) for name in FEATURES}
        try:
            found = self.completer.complete(features, intrinsic, frustum_mask)
        except ConfigError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        return triton.InferenceResponse([triton.Tensor.from_dlpack(name, array) for name, array in found.items()])


def _read(request: Any, name: str) -> Any:
    import triton_python_backend_utils as triton

    # by DLPack, as all tensors here: as_numpy of servers built before NumPy 2 gives garbage under NumPy 2
    return np.from_dlpack(triton.get_input_tensor_by_name(request, name))
