"""Jobs: commands that a service runs for its clients, one process each. What they are called, what they are told, what is told of them.

The spec of a job is what its command takes: an experiment for train, evaluate, inference and export, and the settings below for
ingest and fit. Made and read as JSON; the classes stand in the service's OpenAPI document as they are here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from scenemill.schemas.config import PRECISIONS
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.fields import SOURCES
from scenemill.schemas.fit import FitConfig
from scenemill.schemas.settings import About, settle

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED, INTERRUPTED = STATES = (
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "interrupted",
)
"""``interrupted``: its process went without a word, as when the machine was switched off; it waits to be resumed."""

RESUMABLE: Final = (FAILED, CANCELLED, INTERRUPTED)
ENDED: Final = (SUCCEEDED, *RESUMABLE)

NAME: Final = "[A-Za-z0-9][A-Za-z0-9._ -]{0,99}"
"""What jobs may be called, as a regular expression."""


@dataclass(frozen=True)
class IngestSpec:
    """The spec of an ingest: the options of ``scenemill ingest``.

    Raises:
        ConfigError: a value of another type or out of range.
    """

    source: str = field(default="front3d", metadata=About(help="Kind of the raw folder.", options=SOURCES))
    input: str = field(default="", metadata=About(help="Raw folder; needed."))
    output: str = field(default="", metadata=About(help="The store; empty for one in the job's folder."))
    splits: tuple[str, ...] = field(default=(), metadata=About(help="Split lists, by name or NAME=FILE; empty for all there are."))
    limit: int | None = field(default=None, metadata=About(help="At most this many samples, the first in key order.", least=1))
    workers: int = field(default=1, metadata=About(help="Processes.", least=1))
    max_rejected: str | None = field(
        default=None, metadata=About(help="Publish only if at most this many samples are rejected: 1% or 20; null for no limit.")
    )
    precision: str = field(default=PRECISIONS[0], metadata=About(help="How distances are stored.", options=PRECISIONS))
    samples_per_part: int | None = field(
        default=None, metadata=About(help="Samples in a part; null for 64, or the store's own.", least=1, most=4096)
    )
    repair: bool = field(default=False, metadata=About(help="Verify the store first, and build damaged parts anew."))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class FitSpec:
    """The spec of a fit: the options of ``scenemill fit views``.

    Raises:
        ConfigError: a value of another type or out of range.
    """

    store: str = field(default="", metadata=About(help="A store of views; needed."))
    out: str = field(default="", metadata=About(help="Folder for all that is written; empty for one in the job's folder."))
    template: str = field(default="sphere", metadata=About(help="Mesh to begin with: a file, or sphere."))
    split: str = field(default="", metadata=About(help="Split to fit; empty for all views."))
    held_out: str = field(default="", metadata=About(help="Split to measure on; empty for every tenth view."))
    scene: str = field(default="", metadata=About(help="Which object, where the store has several."))
    truth: str = field(default="", metadata=About(help="Mesh file of the true surface; empty for none."))
    tables: str = field(default="", metadata=About(help="Metric tables; empty for those beside the mesh."))
    name: str = field(default="fit", metadata=About(help="Of the result in the metric tables."))
    device: str = field(default="", metadata=About(help="cpu, cuda, ...; empty for the best there is."))
    settings: FitConfig = field(default_factory=FitConfig, metadata=About(help="Of the fit itself."))

    def __post_init__(self) -> None:
        settle(self)


_EXPERIMENT_PATHS: Final = (
    "results_dir",
    *(f"{action}.results_dir" for action in ("train", "evaluate", "inference", "export", "gen_trt_engine")),
    *(f"dataset.{split}.{name}" for split in ("train", "val", "test") for name in ("base_dir", "json_path")),
    "dataset.label_map",
    "dataset.frustum_mask_path",
    "model.backbone.pretrained_model_path",
    "train.resume_training_checkpoint_path",
    "train.checkpoint_2d",
    "train.checkpoint_3d",
    "evaluate.checkpoint",
    "inference.checkpoint",
    "inference.images_dir",
    "export.checkpoint",
    "export.onnx_file_2d",
    "export.onnx_file",
    "gen_trt_engine.onnx_file",
    "gen_trt_engine.trt_engine",
    "gen_trt_engine.timing_cache",
)


@dataclass(frozen=True)
class Kind:
    """What a kind of job is told and leaves.

    Attributes:
        settings: the class of its spec.
        paths: dotted names of the settings that are paths.
        results: names of what it leaves for its children, which say ``{parent.NAME}`` in place of a path.
        needed: dotted names of the settings without which its command has nothing to do.
    """

    settings: type
    paths: tuple[str, ...]
    results: tuple[str, ...]
    needed: tuple[str, ...] = ()


KINDS: Final[Mapping[str, Kind]] = {
    "ingest": Kind(IngestSpec, ("input", "output"), ("store",), ("input",)),
    "train": Kind(ExperimentConfig, _EXPERIMENT_PATHS, ("checkpoint", "results")),
    "evaluate": Kind(ExperimentConfig, _EXPERIMENT_PATHS, ("results",), ("evaluate.checkpoint",)),
    "inference": Kind(ExperimentConfig, _EXPERIMENT_PATHS, ("results",), ("inference.checkpoint", "inference.images_dir")),
    "export": Kind(ExperimentConfig, _EXPERIMENT_PATHS, ("results",), ("export.checkpoint",)),
    "fit": Kind(FitSpec, ("store", "out", "template", "truth", "tables"), ("results",), ("store",)),
}
"""By name, which is that of the command."""


def kind_of(name: str) -> Kind:
    """The kind of a name.

    Raises:
        ConfigError: no such kind.
    """
    if name not in KINDS:
        raise ConfigError(f"kind {name[:40]!r} is not known; use one of {', '.join(KINDS)}")
    return KINDS[name]


@dataclass(frozen=True)
class JobRequest:
    """What a client asks for.

    Attributes:
        kind: one of ``KINDS``.
        spec: its settings; those left out have their defaults.
        name: for people; "" for the kind's.
        parent: id of a job that must succeed first; None for none.

    Raises:
        ConfigError: no such kind, or a name of other signs.
    """

    kind: str
    spec: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    parent: str | None = None

    def __post_init__(self) -> None:
        kind_of(self.kind)
        if self.name and not re.fullmatch(NAME, self.name):
            raise ConfigError(f"name {self.name[:120]!r}: give at most 100 letters, digits, spaces, dots, dashes and underscores")


@dataclass(frozen=True)
class Job:
    """What is known of a job.

    Attributes:
        id: 16 hexadecimal digits.
        name, kind, parent: see ``JobRequest``.
        state: one of ``STATES``.
        reason: why it is in that state, in words; "" where the state says it all.
        exit_code: of its process: 0 done, 1 unexpected, 2 its settings, 3 its data, below 0 the signal that ended it; None before.
        attempt: how often it was started.
        created, started, ended: times in UTC, ISO 8601; of the last attempt.
        results: what it left, by name: see ``Kind``.
    """

    id: str
    name: str
    kind: str
    parent: str | None
    state: str
    reason: str
    exit_code: int | None
    attempt: int
    created: str
    started: str | None
    ended: str | None
    results: dict[str, str]


@dataclass(frozen=True)
class JobDetail(Job):
    """A job and what it was told.

    Attributes:
        spec: as it was given, without secrets.
    """

    spec: dict[str, Any]


@dataclass(frozen=True)
class LogPiece:
    """Some of what a job has printed.

    Attributes:
        offset: where the piece begins, in bytes from the beginning.
        next: where the next one does.
        state: of the job, known before the piece was read: when it has ended and the piece is empty, nothing follows.
        text: the piece; bytes that are no text as U+FFFD.
    """

    offset: int
    next: int
    state: str
    text: str


@dataclass(frozen=True)
class Refusal:
    """Why a request was refused.

    Attributes:
        kind: of error.
        what: is wrong.
        where: in the request.
        now: what to do.
    """

    kind: str
    what: str
    where: str
    now: str


@dataclass(frozen=True)
class Refused:
    """The body of every answer that is no success."""

    error: Refusal
