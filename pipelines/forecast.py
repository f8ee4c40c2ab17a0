"""What an ingest would do, without doing it: parts, bytes and minutes, from a rate measured on a few of the very samples."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from scenemill.pipelines.folder import read_folder
from scenemill.pipelines.ingest import build_part
from scenemill.pipelines.plan import make_plan, open_base
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.schemas.config import IngestConfig
from scenemill.transforms import sums
from scenemill.transforms.parts import PartPlan, read_receipt

_TRIED: Final = 3


@dataclass(frozen=True)
class Forecast:
    """What an ingest would do.

    Attributes:
        listed, kept, rejected_before, new: samples: asked for, in the store already, rejected before, to be built.
        parts: to build.
        raw_byte: to read.
        tried: samples that were converted to measure the rate.
        seconds_per_sample: of one process.
        stored_byte: expected size of the new parts.
        seconds: expected time on ``workers`` processes, start-up not counted.
        workers: processes.
    """

    listed: int
    kept: int
    rejected_before: int
    new: int
    parts: int
    raw_byte: int
    tried: int
    seconds_per_sample: float
    stored_byte: int
    seconds: float
    workers: int


def forecast(config: IngestConfig, on_progress: OnProgress = no_progress) -> Forecast:
    """Plan an ingest and measure what it would cost; nothing is written to the store.

    Raises:
        ConfigError: as ``ingest``.
    """
    base = open_base(config.output)
    folder = read_folder(config, sums.recall(config.output), base.layout if base else None, on_progress)
    plan = make_plan(config, folder, base)
    new = [planned for part in plan.parts for planned in part.samples]
    step = max(1, len(new) // _TRIED)
    trial = PartPlan("trial", 0, tuple(new[step // 2 :: step][:_TRIED]))
    seconds, stored_byte = 0.0, 0
    if trial.samples:
        with TemporaryDirectory() as store:
            layout = replace(plan.layout, samples_per_part=len(trial.samples))
            build_part(
                folder.source, layout, Path(store), "", replace(trial, id="warm", samples=trial.samples[:1], slot=1)
            )  # imports, fresh memory
            start = time.monotonic()
            build_part(folder.source, layout, Path(store), "", trial)
            seconds = (time.monotonic() - start) / len(trial.samples)
            receipt = read_receipt(Path(store), trial.id)
            assert receipt is not None
            stored_byte = receipt.stored_byte // len(trial.samples)
    return Forecast(
        listed=folder.listed,
        kept=len(plan.kept),
        rejected_before=len(plan.still_rejected) + len(folder.unnamed),
        new=len(new),
        parts=len(plan.parts),
        raw_byte=sum(folder.sums[planned.listed.key].raw_byte for planned in new),
        tried=len(trial.samples),
        seconds_per_sample=seconds,
        stored_byte=stored_byte * len(new),
        seconds=seconds * len(new) / min(config.workers, max(1, len(plan.parts))),
        workers=config.workers,
    )
