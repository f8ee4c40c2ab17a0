"""Stage 1 for a Triton server without ONNX Runtime's own backend: the ONNX file beside this one, run by Triton's Python backend.

Source: the interface of Triton's Python backend.
"""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TritonPythonModel:
    """Names of inputs and outputs come from config.pbtxt, which has them from the ONNX file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the file on the device of this instance."""
        import onnxruntime
        import triton_python_backend_utils as triton

        config = json.loads(args["model_config"])
        self.input, self.outputs = config["input"][0]["name"], [output["name"] for output in config["output"]]
        self.batched = config["max_batch_size"] > 0
        provider: Any = "CPUExecutionProvider"
        if args["model_instance_kind"] == "GPU":
            provider = ("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])})
            if provider[0] not in onnxruntime.get_available_providers():
                raise triton.TritonModelException("no CUDA in this onnxruntime: install onnxruntime-gpu, or export for the CPU")
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), providers=[provider])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; those that come together run as one batch where the file takes any number of images."""
        import triton_python_backend_utils as triton

        # by DLPack, as all tensors here: as_numpy of servers built before NumPy 2 gives garbage under NumPy 2
        images: list[Any] = [np.from_dlpack(triton.get_input_tensor_by_name(request, self.input)) for request in requests]
        found = self._run_together(images) if self.batched else [self._run(each) for each in images]
        return [
            triton.InferenceResponse(
                [triton.Tensor.from_dlpack(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
            )
            for arrays in found
        ]

    def _run(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        arrays: list[NDArray[Any]] = self.session.run(self.outputs, {self.input: images})
        return arrays

    def _run_together(self, images: list[NDArray[np.float32]]) -> list[list[NDArray[Any]]]:
        ends = list(accumulate(len(each) for each in images))[:-1]
        parts = [np.split(array, ends) for array in self._run(np.concatenate(images))]
        return [[np.ascontiguousarray(part) for part in each] for each in zip(*parts, strict=True)]
