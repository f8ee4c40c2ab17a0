"""Where a model runs: one device, several with a copy of it each (DDP), or several with a share of it each (FSDP).

Processes, precision and what they tell each other are Lightning Fabric's; sharding is PyTorch's ``fully_shard``. A checkpoint is the
same file however many processes wrote it: shards are put together for it, and taken apart again when a training goes on.

Several machines: start the same command on each, by ``torchrun`` or with ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` set.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from scenemill.schemas.experiment import ExperimentConfig, gpus_of
from scenemill.trainers.nvpanoptix3d.blocks import Block

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")

_PRECISIONS: Final = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_SHARE_FROM: Final = 1 << 20  # parameters: a part of the network that has fewer is gathered with the whole


def best_device() -> str:
    """Where a model runs when nothing else is said."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_on_devices(task: Callable[[int, int, str], Result], num_gpus: int, gpu_ids: tuple[int, ...]) -> list[Result]:
    """Run a task on each of some devices side by side: in this process on the first, in processes of their own on the others.

    Args:
        task: of a number from 0, how many there are, and the device; a function of a module, with plain arguments bound to it.
        num_gpus, gpu_ids: as the settings have them; where there is no GPU, as many processes share the CPU.

    Returns:
        What each came to, by number.
    """
    chosen = gpus_of(num_gpus, gpu_ids)
    places = [f"cuda:{number}" if torch.cuda.is_available() else "cpu" for number in chosen]
    if len(places) == 1:
        return [task(0, 1, places[0])]
    with ProcessPoolExecutor(len(places) - 1, mp_context=get_context("spawn")) as processes:
        others = [processes.submit(task, number, len(places), place) for number, place in enumerate(places) if number]
        first = task(0, len(places), places[0])
        return [first, *(other.result() for other in others)]


def make_fabric(config: ExperimentConfig) -> "Fabric":
    """Devices, precision and the strategy for several of them, as the configuration says; CPUs where there is no GPU."""
    from lightning_fabric import Fabric

    held = config.train
    cuda = torch.cuda.is_available()
    devices = list(gpus_of(held.num_gpus, held.gpu_ids))
    processes = len(devices) * held.num_nodes
    start = "spawn" if held.num_nodes == 1 else "popen"
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices if cuda else len(devices),
        num_nodes=held.num_nodes,
        strategy=_strategy(held.distributed_strategy, start, processes) if processes > 1 else "auto",
        precision=_PRECISIONS[held.precision],  # type: ignore[arg-type]  # one of its literals
    )
    if processes > 1 and held.distributed_strategy == "fsdp" and start == "spawn":
        _start_from_function(fabric.strategy)
    return fabric


def _strategy(name: str, start: str, processes: int) -> Any:
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if name == "fsdp":
        return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1)
    return DDPStrategy(find_unused_parameters=True, start_method=start)  # type: ignore[arg-type]  # one of its literals


def _start_from_function(strategy: Any) -> None:
    """Let a strategy start processes that call a function, as DDP's does; by itself this one starts the whole command again."""
    from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

    if not strategy.cluster_environment.creates_processes_externally:
        strategy._launcher = _MultiProcessingLauncher(strategy, start_method="spawn")


def shard(learner: nn.Module, mesh: "DeviceMesh") -> nn.Module:
    """Leave each process a share of every parameter: transformer blocks and other large parts are whole only while they work.

    Args:
        learner: a ``Learner``; its network is changed in place.
        mesh: has a dimension ``data_parallel``.
    """
    from torch.distributed.fsdp import fully_shard

    network, over = learner.get_submodule("network"), mesh["data_parallel"]
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=over)
    for part in network.children():
        for module in part.children():
            if not isinstance(module, nn.ModuleList) and sum(held.numel() for held in module.parameters()) >= _SHARE_FROM:
                fully_shard(module, mesh=over)
    fully_shard(network, mesh=over)
    return learner


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a share of the parameters only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first: averages of batch norms, of which each has its own."""
    if distributed.is_available() and distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def gathered(state: Any) -> Any:
    """A state dict with every shared tensor whole, on the CPU; all processes must ask at once, and the first gets it.

    Args:
        state: dicts, lists and tuples of tensors and plain values.

    Returns:
        The same without shares: on the first process; on others whole tensors are dropped as soon as they were sent, and None is
        in their place.
    """
    if isinstance(state, Mapping):
        return {name: gathered(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if distributed.get_rank() == 0 else None
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state of a checkpoint, each of its tensors shared as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {
        number: {name: _shared_as(parameters[number], value) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": tensors})


def _shared_as(parameter: Tensor, value: Any) -> Any:
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
