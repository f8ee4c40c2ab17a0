"""How good a stage 1 model is on a split: panoptic quality, plain and depth-aware, errors of depth, and the loss.

    evaluation = evaluate_images(model, loader, config, "front3d", compare)
    total = replace(evaluation, counts=all_reduce(evaluation.counts))   # several ranks: their counts, summed
    total.kpi("test")["test_dpq_-1.0_epoch"]                            # the PQ of the documentation

The numbers are those of ``scenemill score`` for the same predictions at the size of the images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import BUILT_IN, VOID, LabelMap
from scenemill.trainers.collate import Batch
from scenemill.trainers.metrics import Average, Tally
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.order import hash_range
from scenemill.trainers.panoptic import DEPTH_LIMITS, METRICS, PixelRule, pq_averages, score_image
from scenemill.trainers.predict import evaluating, images_of, output_size
from scenemill.trainers.sidefiles import label_map_of

DEPTH_ERRORS: Final = ("abs_rel", "rmse_m", "delta_1")

_EVALUATION_VOID: Final = 13  # as the loader's true maps have it
_DEPTH_STEPS_PER_M: Final = 256
_UNIT: Final = 1 << 32  # sums of errors are whole numbers of 2**-32: any order of adding gives the same
_LOSS_UNIT: Final = 1 << 24  # coarser, for losses may be large
_LARGEST_LOSS: Final = 1e6  # of one sample; beyond it a loss says no more than that training went wrong, and sums could overflow
_SAMPLES, _WITH_DEPTH, _WITHOUT_NUMBER, _WITH_LOSS, _LOSS, _LOST, _ERRORS, _TALLIES = 0, 1, 2, 3, 4, 5, 6, 9
_TALLY_SHAPE: Final = (len(METRICS), *Tally().array.shape)
_GROUPS: Final = (("all", "dpq"), ("things", "dpq_th"), ("stuff", "dpq_st"))

Compare = Callable[[Any, Batch, torch.Generator], tuple[Tensor, Any]]
"""From an output of the model, its batch and what draws points, to the weighted sum of all losses, and whatever else."""


@dataclass(frozen=True)
class Evaluation:
    """What was counted over some images.

    Attributes:
        counts: (N,) int64; those of several ranks or parts of a split add up to those of the whole, in any order.
        labels: which classes are things and which are stuff.
    """

    counts: NDArray[np.int64]
    labels: LabelMap = BUILT_IN

    @staticmethod
    def empty(labels: LabelMap = BUILT_IN) -> "Evaluation":
        """Of no image."""
        return Evaluation(np.zeros(_TALLIES + int(np.prod(_TALLY_SHAPE)), np.int64), labels)

    @staticmethod
    def of_losses(losses: Sequence[float]) -> "Evaluation":
        """Of losses alone, one for each sample; see ``image_losses``."""
        known = [loss for loss in losses if abs(loss) <= _LARGEST_LOSS]  # no number is not
        found = Evaluation.empty()
        found.counts[_WITH_LOSS], found.counts[_LOST] = len(losses), len(losses) - len(known)
        found.counts[_LOSS] = sum(round(loss * _LOSS_UNIT) for loss in known)
        return found

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return replace(self, counts=self.counts + other.counts)

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
        return pq_averages(self.tallies[metric, rule], rule, self.labels)

    @property
    def loss(self) -> float | None:
        """The mean loss of the samples; None without one. No number once a sample's loss was none, or beyond a million."""
        samples = int(self.counts[_WITH_LOSS])
        if not samples:
            return None
        return float("nan") if self.counts[_LOST] else int(self.counts[_LOSS]) / _LOSS_UNIT / samples

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
        """The reference's numbers as the documentation names them: the loss, where it was counted, and qualities, times 100.

        "-1.0" is plain PQ, "averages" the limits' mean.

        Args:
            prefix: "train", "val" or "test".

        Raises:
            ConfigError: there is no image.
        """
        if not self.samples:
            raise ConfigError("no image was evaluated; give a split with samples that can be read")
        metrics = [("pq", "-1.0"), *((f"dpq_{limit:g}", str(limit)) for limit in DEPTH_LIMITS)]
        found = {} if self.loss is None else {f"{prefix}_loss": self.loss}
        for group, name in _GROUPS:
            quality = {told: 100 * (self.averages(metric, "reference")[group].quality or 0.0) for metric, told in metrics}
            quality["averages"] = float(np.mean([quality[str(limit)] for limit in DEPTH_LIMITS]))
            found |= {f"{prefix}_{name}_{told}_epoch": value for told, value in quality.items()}
        return found


def evaluate_images(
    model: nn.Module, loader: Iterable[Batch], config: ExperimentConfig, source: str, compare: Compare | None = None
) -> Evaluation:
    """Predict every image of a loader, and count.

    Args:
        model: of stage 1; left as it was, every part in its mode.
        loader: of a dataset that is not for training: its batches have the true maps.
        config: what is kept of what the model says.
        source: whose labels they are.
        compare: what training learns from, for the loss; None to leave it out.
    """
    total = Evaluation.empty(label_map_of(config.dataset))
    with evaluating(model):
        for batch in loader:
            with torch.inference_mode():
                output = model(batch["image"])
                total += evaluate_output(batch, output, config, source)
                if compare is not None:
                    total += Evaluation.of_losses(image_losses(compare, output, batch))
    return total


@torch.inference_mode()
def image_losses(compare: Compare, output: Stage1Output, batch: Batch) -> list[float]:
    """The loss of each image alone, so that neither batches nor ranks change it; so do the points that are drawn for an image.

    Args:
        compare: what training learns from.
        output: of the model for the batch.
        batch: of images as in training, on any device.
    """
    device = output.pred_logits.device
    losses = []
    for index, visit in enumerate(batch.visits):
        generator = torch.Generator(device).manual_seed(int(hash_range(1, visit.sample)[0] >> 1))
        total, _ = compare(_of_one(output, index), batch.one(index).to(device), generator)
        losses.append(float(total))
    return losses


def _of_one(output: Any, index: int) -> Any:
    """The part of an output, a tuple of tensors and further tuples and lists, that speaks of one image."""
    if isinstance(output, Tensor):
        return output[index : index + 1]
    if isinstance(output, list):
        return [_of_one(part, index) for part in output]
    return None if output is None else type(output)(*(_of_one(part, index) for part in output))


@torch.inference_mode()
def evaluate_output(batch: Batch, output: Stage1Output, config: ExperimentConfig, source: str) -> Evaluation:
    """Count one batch; see ``evaluate_images``."""
    (size,) = set(batch.sizes)  # images of one dataset have one size
    padded, room_mask = output_size(batch["image"], config), batch.tensors.get("room_mask")
    found = images_of(output, padded, batch.unpadded, config, room_mask, size=size)
    true = {name: batch[name].cpu().numpy() for name in ("raw_sem_seg", "raw_inst_seg")}
    labels = label_map_of(config.dataset)
    total = Evaluation.empty(labels)
    for index, image in enumerate(found):
        semantic = np.where(true["raw_sem_seg"][index] == _EVALUATION_VOID, np.uint8(VOID), true["raw_sem_seg"][index])
        total += count_image(semantic, true["raw_inst_seg"][index], _true_depth(batch, index, config), image, source, labels)
    return total


def _true_depth(batch: Batch, index: int, config: ExperimentConfig) -> NDArray[Any]:
    """(H, W) floats, metres: as stored, or cut off to steps of 1/256 m where images are resized before the model sees them."""
    height, width = size = batch.unpadded[index]
    if size == batch.sizes[index] and config.dataset.target_size == (width, height):
        return batch["depth"][index, :height, :width].cpu().numpy()
    return batch["raw_depth"][index].cpu().numpy() / _DEPTH_STEPS_PER_M


def count_image(
    semantic: NDArray[Any],
    instance: NDArray[Any],
    depth_m: NDArray[Any],
    found: PanopticImage,
    source: str,
    labels: LabelMap = BUILT_IN,
) -> Evaluation:
    """Count one image.

    Args:
        semantic: (H, W) integers, true class ids, as they are learned; 0 is void.
        instance: (H, W) integers, true instance ids.
        depth_m: (H, W) floats, true depth in metres; at most 0 is invalid.
        found: what the model says, of the same size.
        source: whose labels they are.
        labels: what is learned of them.
    """
    segments, told = found.panoptic_seg.cpu().numpy(), found.depth.cpu().numpy()
    classes = {segment.id: segment.category_id for segment in found.segments}
    tallies, errors = score_image(semantic, instance, depth_m, segments, classes, told, source, labels)
    result = Evaluation.empty(labels)
    result.counts[_SAMPLES] = 1
    result.counts[_TALLIES:] = np.stack([tally.array for tally in tallies.values()]).reshape(-1)
    if errors is not None:
        values = [errors[name] for name in DEPTH_ERRORS]
        finite = bool(np.isfinite(values).all())
        result.counts[_WITH_DEPTH], result.counts[_WITHOUT_NUMBER] = 1, not finite
        result.counts[_ERRORS : _ERRORS + len(values)] = [round(value * _UNIT) for value in values] if finite else 0
    return result
