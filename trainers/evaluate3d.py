"""How good a stage 2 model is on a split: panoptic reconstruction quality.

    evaluation = evaluate_volumes(model, loader, config)
    evaluation.kpi()["PRQ"]                                  # percent, as in the documentation

The numbers are those of ``scenemill score`` for the same predictions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.collate import Batch
from scenemill.trainers.metrics import RULES, STUFF, Rule, SurfaceRule, Tally, form_of, panoptic_reconstruction_quality
from scenemill.trainers.nvpanoptix3d.postprocess3d import PanopticVolume
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2, Stage2Output
from scenemill.trainers.predict import evaluating, volumes_of
from scenemill.trainers.segments import segments_from_labels, segments_from_panoptic
from scenemill.trainers.sidefiles import label_map_of

_SAMPLES: Final = 1
_TALLY_SHAPE: Final = (len(RULES), *Tally().array.shape)

OnScene = Callable[[Batch, Stage2Output], None]


def ignore_scene(batch: Batch, output: Stage2Output) -> None:
    """For callers who want nothing else of the model's outputs."""


@dataclass(frozen=True)
class VolumeEvaluation:
    """What was counted over some samples.

    Attributes:
        counts: (N,) int64; those of several ranks or parts of a split add up to those of the whole, in any order.
    """

    counts: NDArray[np.int64]

    @staticmethod
    def empty() -> "VolumeEvaluation":
        """Of no sample."""
        return VolumeEvaluation(np.zeros(_SAMPLES + int(np.prod(_TALLY_SHAPE)), np.int64))

    def __add__(self, other: "VolumeEvaluation") -> "VolumeEvaluation":
        return VolumeEvaluation(self.counts + other.counts)

    @property
    def samples(self) -> int:
        """How many samples."""
        return int(self.counts[0])

    @property
    def tallies(self) -> dict[Rule, Tally]:
        """Counts per class, by rule."""
        arrays = self.counts[_SAMPLES:].reshape(_TALLY_SHAPE)
        return {rule: Tally(array) for rule, array in zip(RULES, arrays, strict=True)}

    def kpi(self) -> dict[str, float]:
        """PRQ, RSQ and RRQ of all classes by the reference's rule, times 100, as the documentation names them.

        Raises:
            ConfigError: there is no sample.
        """
        if not self.samples:
            raise ConfigError("no sample was evaluated; give a split with samples that can be read")
        mean = self.tallies["reference"].average()
        values = {"PRQ": mean.quality, "RSQ": mean.segmentation, "RRQ": mean.recognition}
        return {name: 100 * (value or 0.0) for name, value in values.items()}


def evaluate_volumes(
    model: Stage2, loader: Iterable[Batch], config: ExperimentConfig, on_output: OnScene = ignore_scene
) -> VolumeEvaluation:
    """Predict every sample of a loader, and count.

    Args:
        model: of stage 2; left as it was, every part in its mode.
        loader: of a dataset with volumes that is not for training: its batches have the true labels.
        config: what is kept of what the model says.
        on_output: called with each batch and the model's output, for losses.
    """
    total = VolumeEvaluation.empty()
    with evaluating(model):
        for batch in loader:
            with torch.inference_mode():
                output = model(*scene_inputs(batch))
                on_output(batch, output)
                for index, volume in enumerate(volumes_of(output, config)):
                    total += count_volume(batch, index, volume, config)
    return total


def surface_rule(config: ExperimentConfig) -> SurfaceRule:
    """Which voxels the metric compares, as the settings have it."""
    held = config.dataset
    return SurfaceRule(held.iso_value, config.model.frustum3d.iso_recon_value, held.downsample_factor)


def scene_inputs(batch: Batch) -> tuple[object, ...]:
    """Of a batch, what the network of stage 2 is called with."""
    return batch["image"], batch.unpadded, batch["intrinsic"], batch["frustum_mask"], batch.tensors.get("room_mask_buol")


def count_volume(batch: Batch, index: int, found: PanopticVolume, config: ExperimentConfig) -> VolumeEvaluation:
    """Count one sample of a batch.

    Args:
        batch: with ``semantic_3d``, ``instance_3d``, ``geometry`` and ``frustum_mask``.
        index: of the sample in it.
        found: what the model says, of the same size.
        config: whose labels they are, and which voxels count.
    """
    source = config.dataset.name
    stuff = label_map_of(config.dataset).stuff(STUFF[form_of(source)])
    true = segments_from_labels(batch["semantic_3d"][index], batch["instance_3d"][index], stuff)
    predicted = segments_from_panoptic(found.panoptic, {segment.id: segment.category_id for segment in found.segments})
    distance, frustum = batch["geometry"][index], batch["frustum_mask"][index]
    tallies = panoptic_reconstruction_quality(
        true, distance, predicted, found.distance, frustum, source, surface=surface_rule(config)
    )
    result = VolumeEvaluation.empty()
    result.counts[0] = 1
    arrays = result.counts[_SAMPLES:].reshape(_TALLY_SHAPE)
    for array, rule in zip(arrays, RULES, strict=True):
        array += tallies[rule].array
    return result
