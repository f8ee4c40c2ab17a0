"""How good a stage 1 model is on a split: panoptic quality, plain and depth-aware, and errors of depth.

    evaluation = evaluate_images(model, loader, config, "front3d")
    total = Evaluation(all_reduce(evaluation.counts))         # several ranks: their counts, summed
    total.kpi("test")["test_dpq_-1.0_epoch"]                 # the PQ of the documentation

The numbers are those of ``scenemill score`` for the same predictions at the size of the images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import VOID
from scenemill.trainers.collate import Batch
from scenemill.trainers.metrics import Average, Tally
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.panoptic import (
    DEPTH_LIMITS,
    PIXEL_RULES,
    PixelRule,
    depth_errors,
    panoptic_quality,
    pq_averages,
    relative_depth_error,
)
from scenemill.trainers.predict import evaluating, images_of

METRICS: Final[tuple[tuple[str, PixelRule, float | None], ...]] = (
    *(("pq", rule, None) for rule in PIXEL_RULES),
    *((f"dpq_{limit:g}", "reference", limit) for limit in DEPTH_LIMITS),
)
"""Metric and rule, as in the metric tables, and the depth limit."""

DEPTH_ERRORS: Final = ("abs_rel", "rmse_m", "delta_1")

_EVALUATION_VOID: Final = 13  # as the loader's true maps have it
_DEPTH_STEPS_PER_M: Final = 256
_UNIT: Final = 1 << 32  # sums of errors are whole numbers of 2**-32: any order of adding gives the same
_SAMPLES, _WITH_DEPTH, _WITHOUT_NUMBER, _ERRORS, _TALLIES = 0, 1, 2, 3, 6
_TALLY_SHAPE: Final = (len(METRICS), *Tally().array.shape)
_GROUPS: Final = (("all", "dpq"), ("things", "dpq_th"), ("stuff", "dpq_st"))

OnOutput = Callable[[Batch, Stage1Output], None]


def ignore_output(batch: Batch, output: Stage1Output) -> None:
    """For callers who want nothing else of the model's outputs."""


@dataclass(frozen=True)
class Evaluation:
    """What was counted over some images.

    Attributes:
        counts: (N,) int64; those of several ranks or parts of a split add up to those of the whole, in any order.
    """

    counts: NDArray[np.int64]

    @staticmethod
    def empty() -> "Evaluation":
        """Of no image."""
        return Evaluation(np.zeros(_TALLIES + int(np.prod(_TALLY_SHAPE)), np.int64))

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(self.counts + other.counts)

    @property
    def samples(self) -> int:
        """How many images."""
        return int(self.counts[_SAMPLES])

    @property
    def tallies(self) -> dict[tuple[str, str], Tally]:
        """(metric, rule) -> counts per class, named as in the metric tables."""
        arrays = self.counts[_TALLIES:].reshape(_TALLY_SHAPE)
        return {(metric, rule): Tally(array) for (metric, rule, _), array in zip(METRICS, arrays, strict=True)}

    def averages(self, metric: str, rule: PixelRule) -> dict[str, Average]:
        """All, things and stuff, averaged as the rule does; ``metric`` is one of ``METRICS``."""
        return pq_averages(self.tallies[metric, rule], rule)

    @property
    def depth(self) -> dict[str, float] | None:
        """Errors of depth, each a mean over the images with a valid true depth; None without one. No number once a model gave none."""
        images = int(self.counts[_WITH_DEPTH])
        if not images:
            return None
        if self.counts[_WITHOUT_NUMBER]:
            return dict.fromkeys(DEPTH_ERRORS, float("nan"))
        sums = self.counts[_ERRORS : _ERRORS + len(DEPTH_ERRORS)].tolist()
        return {name: total / _UNIT / images for name, total in zip(DEPTH_ERRORS, sums, strict=True)}

    def kpi(self, prefix: str) -> dict[str, float]:
        """The reference's numbers, times 100, as the documentation names them: "-1.0" is plain PQ, "averages" the limits' mean.

        Args:
            prefix: "train", "val" or "test".

        Raises:
            ConfigError: there is no image.
        """
        if not self.samples:
            raise ConfigError("no image was evaluated; give a split with samples that can be read")
        metrics = [("pq", "-1.0"), *((f"dpq_{limit:g}", str(limit)) for limit in DEPTH_LIMITS)]
        found: dict[str, float] = {}
        for group, name in _GROUPS:
            quality = {told: 100 * (self.averages(metric, "reference")[group].quality or 0.0) for metric, told in metrics}
            quality["averages"] = float(np.mean([quality[str(limit)] for limit in DEPTH_LIMITS]))
            found |= {f"{prefix}_{name}_{told}_epoch": value for told, value in quality.items()}
        return found


def evaluate_images(
    model: nn.Module, loader: Iterable[Batch], config: ExperimentConfig, source: str, on_output: OnOutput = ignore_output
) -> Evaluation:
    """Predict every image of a loader, and count.

    Args:
        model: of stage 1; left as it was, every part in its mode.
        loader: of a dataset that is not for training: its batches have the true maps.
        config: what is kept of what the model says.
        source: whose labels they are.
        on_output: called with each batch and the model's output, for losses.
    """
    total = Evaluation.empty()
    with evaluating(model):
        for batch in loader:
            with torch.inference_mode():
                output = model(batch["image"])
                on_output(batch, output)
                total += evaluate_output(batch, output, config, source)
    return total


@torch.inference_mode()
def evaluate_output(batch: Batch, output: Stage1Output, config: ExperimentConfig, source: str) -> Evaluation:
    """Count one batch; see ``evaluate_images``."""
    (size,) = set(batch.sizes)  # images of one dataset have one size
    padded = (batch["image"].shape[-2], batch["image"].shape[-1])
    found = images_of(output, padded, batch.unpadded, config, batch.tensors.get("room_mask"), size=size)
    true = {name: batch[name].cpu().numpy() for name in ("raw_sem_seg", "raw_inst_seg")}
    total = Evaluation.empty()
    for index, image in enumerate(found):
        semantic = np.where(true["raw_sem_seg"][index] == _EVALUATION_VOID, np.uint8(VOID), true["raw_sem_seg"][index])
        total += count_image(semantic, true["raw_inst_seg"][index], _true_depth(batch, index, config), image, source)
    return total


def _true_depth(batch: Batch, index: int, config: ExperimentConfig) -> NDArray[Any]:
    """(H, W) floats, metres: as stored, or cut off to steps of 1/256 m where images are resized before the model sees them."""
    height, width = size = batch.unpadded[index]
    if size == batch.sizes[index] and config.dataset.target_size == (width, height):
        return batch["depth"][index, :height, :width].cpu().numpy()
    return batch["raw_depth"][index].cpu().numpy() / _DEPTH_STEPS_PER_M


def count_image(
    semantic: NDArray[Any], instance: NDArray[Any], depth_m: NDArray[Any], found: PanopticImage, source: str
) -> Evaluation:
    """Count one image.

    Args:
        semantic: (H, W) integers, true class ids; 0 is void.
        instance: (H, W) integers, true instance ids.
        depth_m: (H, W) floats, true depth in metres; at most 0 is invalid.
        found: what the model says, of the same size.
        source: whose labels they are.
    """
    segments, told = found.panoptic_seg.cpu().numpy(), found.depth.cpu().numpy()
    classes = {segment.id: segment.category_id for segment in found.segments}
    error = relative_depth_error(depth_m, told)
    result = Evaluation.empty()
    result.counts[_SAMPLES] = 1
    arrays = result.counts[_TALLIES:].reshape(_TALLY_SHAPE)
    for array, (_, rule, limit) in zip(arrays, METRICS, strict=True):
        array += panoptic_quality(semantic, instance, segments, classes, source, rule, error, limit).array
    errors = depth_errors(depth_m, told)
    if errors is not None:
        values = [errors[name] for name in DEPTH_ERRORS]
        finite = bool(np.isfinite(values).all())
        result.counts[_WITH_DEPTH], result.counts[_WITHOUT_NUMBER] = 1, not finite
        result.counts[_ERRORS : _ERRORS + len(values)] = [round(value * _UNIT) for value in values] if finite else 0
    return result
