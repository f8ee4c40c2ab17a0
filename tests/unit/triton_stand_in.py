"""A stand-in for a Triton server: it loads a model repository, runs its models, and holds what goes in and comes out to config.pbtxt.

Source: the interface of Triton's Python backend; the schema of config.pbtxt is Triton's own.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from scenemill.pipelines.experiments.triton import SCENE

TYPES = {"TYPE_UINT8": "uint8", "TYPE_BOOL": "bool", "TYPE_FP32": "float32", "TYPE_INT32": "int32", "TYPE_INT64": "int64"}


class Tensor:
    """As the Python backend has them, but for ``as_numpy``, which some servers have broken."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self.array = name, array

    @staticmethod
    def from_dlpack(name: str, array: Any) -> "Tensor":
        return Tensor(name, np.from_dlpack(array))

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class TritonError(Exception):
    def message(self) -> str:
        return str(self)


@dataclass
class Request:
    inputs: Sequence[Tensor]
    model_name: str = ""
    requested_output_names: Sequence[str] = ()
    server: "Server | None" = None

    def exec(self) -> "Response":
        assert self.server is not None
        return self.server.answer(self.model_name, [self], self.requested_output_names)[0]


@dataclass
class Response:
    tensors: Sequence[Tensor] = ()
    error_: TritonError | None = None

    def has_error(self) -> bool:
        return self.error_ is not None

    def error(self) -> TritonError | None:
        return self.error_


def make_response(output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> Response:
    return Response(output_tensors, error)


def pick(holder: Sequence[Tensor], name: str) -> Tensor:
    return next(tensor for tensor in holder if tensor.name() == name)


@dataclass
class Server:
    """Loads a repository as Triton does, and refuses what does not fit a model's configuration, going in and coming out."""

    repository: Path
    kind: str = "CPU"
    configs: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)

    def load(self) -> "Server":
        for folder in sorted(self.repository.iterdir()):
            config = read_config(folder / "config.pbtxt")
            assert config.name == folder.name
            self.configs[config.name] = config
            self.models[config.name] = self._load(folder, config)
        return self

    def _load(self, folder: Path, config: Any) -> Any:
        if config.backend == "onnxruntime":
            return ort.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        spec = importlib.util.spec_from_file_location(f"served_{config.name}", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        said = json_format.MessageToDict(config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        model.initialize(
            {
                "model_config": json.dumps(said),
                "model_instance_kind": self.kind,
                "model_instance_device_id": "0",
                "model_repository": str(folder),
                "model_version": "1",
            }
        )
        return model

    def answer(self, name: str, requests: Sequence[Request], asked: Sequence[str] = ()) -> list[Response]:
        config, model = self.configs[name], self.models[name]
        for request in requests:
            assert {tensor.name() for tensor in request.inputs} == {each.name for each in config.input}
            self._check(config, config.input, request.inputs)
        responses = self._run(config, model, requests)
        assert len(responses) == len(requests)
        for response in responses:
            if not response.has_error():
                self._check(config, config.output, response.tensors)
                if asked:
                    response.tensors = [pick(response.tensors, each) for each in asked]
        return responses

    def _run(self, config: Any, model: Any, requests: Sequence[Request]) -> list[Response]:
        if config.backend == "python":
            done: list[Response] = model.execute(list(requests))
            return done
        names = [each.name for each in config.output]
        feeds = [{tensor.name(): tensor.array for tensor in request.inputs} for request in requests]
        return [Response([Tensor(*each) for each in zip(names, model.run(names, feed), strict=True)]) for feed in feeds]

    def _check(self, config: Any, forms: Any, tensors: Sequence[Tensor]) -> None:
        known = {each.name: each for each in forms}
        for tensor in tensors:
            form = known[tensor.name()]
            shape = tensor.array.shape[1:] if config.max_batch_size else tensor.array.shape
            assert tensor.array.dtype == TYPES[model_config_pb2.DataType.Name(form.data_type)], tensor.name()
            assert list(shape) == list(form.dims), tensor.name()

    def ask(self, image: NDArray[Any], mask: NDArray[Any], intrinsic: NDArray[Any]) -> dict[str, NDArray[Any]]:
        given = {"image": image[None], "frustum_mask": mask[None], "intrinsic": intrinsic[None].astype(np.float32)}
        (response,) = self.answer(SCENE, [Request([Tensor(*each) for each in given.items()])])
        if response.error_ is not None:
            raise response.error_
        return {tensor.name(): tensor.array for tensor in response.tensors}


def make_library(place: dict[str, Any]) -> Any:
    """The module that a server gives its Python models; calls among them go to ``place["at"]``."""
    library: Any = ModuleType("triton_python_backend_utils")
    library.Tensor, library.TritonError, library.TritonModelException = Tensor, TritonError, TritonError
    library.InferenceResponse = make_response
    library.InferenceRequest = lambda **options: Request(**options, server=place["at"])
    library.get_input_tensor_by_name = lambda request, name: pick(request.inputs, name)
    library.get_output_tensor_by_name = lambda response, name: pick(response.tensors, name)
    return library


def read_config(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def forms_of(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {each.name: (model_config_pb2.DataType.Name(each.data_type), list(each.dims)) for each in tensors}
