"""The training loop: one function per thing a step does, and a state that goes on where it was stopped, to the bit.

Everything random about a step is seeded by (seed, step, rank), and the order of samples by two integers, so a run that is stopped
and goes on takes the same steps as one that was not. What the two stages do differently is in ``stages.py``, and what several
devices change in ``devices.py``.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.steps import reached
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.checkpoint import checkpoint_name, find_resume, load_checkpoint, point_latest, save_checkpoint
from scenemill.trainers.collate import Batch
from scenemill.trainers.devices import gathered, is_sharded, load_optimizer, make_fabric, share_buffers
from scenemill.trainers.evaluate3d import ignore_scene
from scenemill.trainers.nvpanoptix3d.optimizer import (
    Schedule,
    clip_gradients,
    freeze,
    make_optimizer,
    set_learning_rate,
    set_randomness,
)
from scenemill.trainers.nvpanoptix3d.weights import restore
from scenemill.trainers.order import hash_range
from scenemill.trainers.snapshots import Snapshots
from scenemill.trainers.stages import Learner, Lesson, Watch, stage_of
from scenemill.trainers.status import Curves, StatusLog

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Step:
    """What one training step came to.

    Attributes:
        epoch, step: counted from 0; ``step`` over the whole run.
        steps: of the run.
        losses: by name, not weighted; ``train_loss`` is their weighted sum.
        learning_rate: of the heads.
        samples_per_s: over the last step, on this process.
        wait_ms: for the batch.
    """

    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    samples_per_s: float
    wait_ms: float


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        checkpoint: the last one written.
        epoch, step: where it stopped.
        losses: ``train_loss`` of every step of this process.
        kpi: of the last validation; empty without one.
    """

    checkpoint: Path
    epoch: int
    step: int
    losses: tuple[float, ...]
    kpi: Mapping[str, float]


def train(
    config: ExperimentConfig,
    training: SceneDataset,
    validation: SceneDataset | None,
    folder: Path,
    on_step: Callable[[Step], None] = lambda step: None,
    on_saved: Callable[[], None] = lambda: None,
) -> Trained:
    """Train the stage that ``dataset.enable_3d`` names, or go on with it.

    Args:
        config: the experiment.
        training: samples to learn from. validation: samples to measure on; None for none.
        folder: of checkpoints, status and curves.
        on_step: told of every step, on the first process; with several processes a function of a module, since it is sent there.
        on_saved: called after every checkpoint, in the same way.

    Raises:
        ConfigError: settings that do not fit each other, this machine, or a checkpoint.
        Corrupt: a sample cannot be read.
    """
    fabric = make_fabric(config)
    if fabric.world_size == 1:
        return _run(fabric, config, training, validation, folder, on_step, on_saved)
    launched = partial(
        _run_apart,
        config=config,
        training=training,
        validation=validation,
        folder=folder,
        on_step=on_step,
        on_saved=on_saved,
    )  # bound, not passed: Fabric would take its arguments to pieces
    checkpoint, epoch, step, losses, kpi = fabric.launch(launched)
    return Trained(Path(checkpoint), epoch, step, tuple(losses), kpi)


def _run_apart(fabric: "Fabric", **given: Any) -> tuple[str, int, int, list[float], dict[str, float]]:
    """``_run`` in a process of its own; what comes back is plain."""
    trained = _run(fabric, **given)
    return str(trained.checkpoint), trained.epoch, trained.step, list(trained.losses), dict(trained.kpi)


def _run(
    fabric: "Fabric",
    config: ExperimentConfig,
    training: SceneDataset,
    validation: SceneDataset | None,
    folder: Path,
    on_step: Callable[[Step], None],
    on_saved: Callable[[], None],
) -> Trained:
    run = _Run(fabric, config, training, validation, folder, on_saved)
    status = StatusLog(folder) if fabric.is_global_zero else None
    if status:
        status.write("STARTED", "Starting NVPanoptix3D train.")
    try:
        trained = run.train(on_step, status)
    except BaseException as error:
        run.save_what_is_whole()
        if status:
            status.write("FAILURE", f"{type(error).__name__}: {error}", verbosity="ERROR")
        raise
    finally:
        run.close()
    if status:
        status.write("SUCCESS", "Training finished.", kpi=dict(trained.kpi))
    return trained


class _Run:
    """The state of one training: weights, optimiser, order of samples, and how far it has come."""

    def __init__(
        self,
        fabric: "Fabric",
        config: ExperimentConfig,
        training: SceneDataset,
        validation: SceneDataset | None,
        folder: Path,
        on_saved: Callable[[], None],
    ) -> None:
        held = config.train
        set_randomness(held.seed, benchmark=held.cudnn.benchmark, deterministic=held.cudnn.deterministic)
        self.fabric, self.config, self.folder, self.validation = fabric, config, folder, validation
        self.on_saved = on_saved
        self.seed = held.seed if held.seed >= 0 else torch.seed()
        self.stage = stage_of(config)
        self.network = self.stage.make_model(config)
        self.criterion = self.stage.make_criterion(config)
        self.unknown = freeze(self.network, held.freeze)
        optim = held.optim
        self.schedule = Schedule(
            optim.lr_scheduler, optim.max_steps, optim.warmup_factor, optim.warmup_iters, optim.milestones, optim.gamma
        )
        self.loader = self._loader(training, config.dataset.train.batch_size, config.dataset.train.num_workers, shuffle=True)
        self.epoch, self.step = 0, 0
        self.place = self.loader.state  # behind the samples of the last whole step
        self.whole = True  # False while weights are ahead of the step
        self.kpi: Mapping[str, float] = {}
        self.saved: Path | None = None
        self.saved_step = 0
        self.steps_per_epoch = held.iters_per_epoch or max(1, len(training) // (self.loader.batch_size * fabric.world_size))
        self.steps = 1 if held.is_dry_run else min(optim.max_steps, held.num_epochs * self.steps_per_epoch)
        resumed = self._resume()
        if not resumed:
            self.stage.load_first(self.network, config)
        self.learner = fabric.setup_module(Learner(config, self.network, self.criterion))
        optimizer = make_optimizer(  # of the parameters as they are on the devices: shares, where they are shared
            self.network,
            optim.type,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            backbone_multiplier=optim.backbone_multiplier,
            momentum=optim.momentum,
        )
        if resumed:
            load_optimizer(optimizer, resumed["optimizer"])
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.curves = Curves(folder, config) if fabric.is_global_zero else None

    def _loader(self, dataset: SceneDataset, batch_size: int, workers: int = 0, *, shuffle: bool) -> SceneLoader:
        """The batches of this process."""
        return SceneLoader(
            dataset,
            batch_size,
            workers=workers,
            device=self.fabric.device,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )

    def train(self, on_step: Callable[[Step], None], status: StatusLog | None) -> Trained:
        """All steps that are left."""
        if status and self.unknown:
            status.write("RUNNING", f"train.freeze names unknown parts: {', '.join(self.unknown)}", verbosity="WARNING")
        losses: list[float] = []
        batches = self._batches()
        epoch_began = time.perf_counter()
        while self.step < self.steps:
            self.learner.train()
            asked = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            found = self._learn(batch)
            losses.append(found["train_loss"])
            taken = time.perf_counter() - asked
            rate = float(self.optimizer.param_groups[0]["lr"])
            told = Step(self.epoch, self.step - 1, self.steps, found, rate, len(batch) / taken, 1000 * (got - asked))
            if self.curves is not None:
                self.curves.write({**found, "learning_rate": rate, "wait_ms": told.wait_ms}, self.step)
                on_step(told)
            del batch
            self._after_step(status, epoch_began)
            if self.step % self.steps_per_epoch == 0:
                epoch_began = time.perf_counter()
        if self.saved is None or self.step % self._interval():
            self.save(self.config.train.checkpoint_interval_unit)
        return Trained(self.saved or self.folder, self.epoch, self.step, tuple(losses), self.kpi)

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield from self.loader

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step of the optimiser; all losses as numbers."""
        set_learning_rate(self.optimizer, self.schedule.factor(self.step, self.epoch))
        seed = int(hash_range(1, self.seed, self.step, self.fabric.global_rank)[0] >> 1)
        torch.manual_seed(seed)
        generator = torch.Generator(self.fabric.device).manual_seed(seed)
        total, losses = self.learner(Lesson(batch, generator))
        self.fabric.backward(total)
        values = torch.stack([total, *losses.values()]).tolist()  # read from a GPU at once, not one by one
        found = dict(zip(("train_loss", *losses), values, strict=True))
        if not isfinite(found["train_loss"]):
            told = ", ".join(f"{name} {loss:g}" for name, loss in found.items() if name in losses and not isfinite(loss))
            raise ArithmeticError(f"step {self.step}: the loss is not finite ({told}); samples {', '.join(batch.keys)}")
        self._clip()
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.place = self.step + 1, self.loader.state
        self.whole = True
        reached("step taken")
        return found

    def _clip(self) -> None:
        held = self.config.train
        if held.clip_grad_type == "full":
            self.fabric.clip_gradients(self.learner, self.optimizer, max_norm=held.clip_grad_norm, error_if_nonfinite=False)
        else:
            parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
            clip_gradients(
                parameters, held.clip_grad_norm, norm_type=float(held.clip_grad_norm_type), clip_type=held.clip_grad_type
            )

    def _interval(self) -> int:
        """Steps between checkpoints."""
        held = self.config.train
        return held.checkpoint_interval * (self.steps_per_epoch if held.checkpoint_interval_unit == "epoch" else 1)

    def _after_step(self, status: StatusLog | None, epoch_began: float) -> None:
        held = self.config.train
        if self.step % self.steps_per_epoch == 0:
            self.epoch += 1
            taken = time.perf_counter() - epoch_began
            if status:
                left = (self.steps - self.step) / self.steps_per_epoch * taken
                status.write(
                    "RUNNING",
                    epoch=self.epoch - 1,
                    step=self.step,
                    max_epoch=held.num_epochs,
                    max_step=self.steps,
                    time_per_epoch=round(taken, 3),
                    time_per_step=round(taken / self.steps_per_epoch, 4),
                    eta=round(left, 1),
                )
        due = self.step % self.steps_per_epoch == 0 and self.epoch % held.validation_interval == 0
        if due or self.step == self.steps:
            self._validate(status)
        if self.step % self._interval() == 0:
            self.save(held.checkpoint_interval_unit)

    def _validate(self, status: StatusLog | None) -> None:
        """Measure on the validation split, each process on its share of it."""
        if self.validation is None:
            return
        share_buffers(self.network)
        loader = self._loader(self.validation, self.config.dataset.val.batch_size, shuffle=False)
        batches = islice(loader, 1 if self.config.train.is_dry_run else None)
        own = self.stage.evaluate(self.network, self.criterion, batches, self.config, self._watch(status))
        counts: Any = self.fabric.all_reduce(torch.from_numpy(own.counts).to(self.fabric.device), reduce_op="sum")
        self.kpi = self.stage.kpi(replace(own, counts=counts.cpu().numpy()), "val")
        self.network.train()
        if self.curves is not None:
            self.curves.write(self.kpi, self.step)
        if status:
            status.write("RUNNING", "Validation finished.", kpi=dict(self.kpi), epoch=self.epoch, step=self.step)

    def _watch(self, status: StatusLog | None) -> Watch:
        """What writes 3D checkpoints of a validation, on the first process; it needs USD, and says so where that is missing."""
        if status is None:
            return ignore_scene
        if find_spec("pxr") is None:
            status.write("RUNNING", "No 3D checkpoints: they need usd-core, which is not installed.", verbosity="WARNING")
            return ignore_scene
        return Snapshots(self.folder / "timelapse", self.step, self.config).watch

    def save_what_is_whole(self) -> None:
        """A checkpoint of the last whole step, where that is not written yet.

        None while a step is half taken, and none of shares: to put them together takes all processes, and one of them has failed.
        """
        if self.whole and self.step != self.saved_step and not is_sharded(self.network):
            self.save("step")

    def save(self, unit: str) -> None:
        """Write a checkpoint, and point the newest's link to it: the first process does, of what all of them have."""
        if is_sharded(self.network):
            weights, moments = gathered(self.network.state_dict()), gathered(self.optimizer.state_dict())
        else:
            weights, moments = self.network.state_dict(), self.optimizer.state_dict()
        self.saved_step = self.step
        if not self.fabric.is_global_zero:
            return
        if self.curves is not None:
            self.curves.flush()  # first: whoever goes on from the checkpoint does not draw what was before it
        path = self.folder / checkpoint_name(self.epoch, self.step, unit)
        document = {
            "state_dict": {
                **{f"model.{name}": value for name, value in weights.items()},
                "criterion.empty_weight": self.criterion.empty_weight,
            },
            "epoch": self.epoch,
            "global_step": self.step,
            "optimizer": moments,
            "schedule": {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.schedule).items()},
            "order": list(self.place),
            "seed": self.seed,
        }
        save_checkpoint(path, document, self.config.encryption_key or "")
        point_latest(self.folder, path, self.stage.latest)
        self.saved = path
        self.on_saved()

    def _resume(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one; its weights, order and step are taken."""
        path = find_resume(self.config.train.resume_training_checkpoint_path, self.folder, self.stage.latest)
        if path is None:
            return None
        held = load_checkpoint(path, self.config.encryption_key or "")
        missing = [name for name in ("state_dict", "optimizer", "order", "global_step", "epoch") if name not in held]
        if missing:
            raise ConfigError(f"{path} has no {', '.join(missing)}: it holds weights alone; give it as train.checkpoint_2d")
        restore(self.network, held, path)
        self.epoch, self.step = held["epoch"], held["global_step"]
        self.seed, self.place = held.get("seed", self.seed), (held["order"][0], held["order"][1])
        self.loader = replace(self.loader, seed=self.seed, state=self.place)
        self.saved, self.saved_step = path, self.step
        return held

    def close(self) -> None:
        """Let go of the curves."""
        if self.curves is not None:
            self.curves.close()
