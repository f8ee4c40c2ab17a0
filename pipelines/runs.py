"""The runs table: what each run did, when, and what it judged the samples table by. All that depends on time and place is here."""

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Literal
from uuid import uuid4

import pyarrow as pa

import scenemill
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.places import Place
from scenemill.schemas.tables import RUNS, table_of
from scenemill.transforms.publish import write_whole
from scenemill.transforms.rows import write_rows
from scenemill.validators.suites import Expected

if TYPE_CHECKING:
    from scenemill.pipelines.ingest import Outcome

_SOFTWARE: Final = ("apache-beam", "great-expectations", "numcodecs", "numpy", "openexr", "pillow", "pyarrow", "zarr", "zlib-ng")


Stage = Literal["list", "build", "judge", "publish"]
"""What a run spends its time on: listing, summing and planning; building parts; judging the table as a whole; publishing."""


class Run:
    """One run: its id, and its clock from construction on."""

    def __init__(self, config: IngestConfig, command: str, runner: str) -> None:
        self.started = datetime.now(UTC)
        self.id = f"{self.started:%Y%m%dT%H%M%SZ}-{uuid4().hex[:6]}"
        self._config = config
        self._command = command
        self._runner = runner
        self._stages: dict[str, float] = {}
        self._clock = time.monotonic()

    def folder(self, store: Place) -> Place:
        """Where the run keeps its row, its validation result and the data docs."""
        return store / "runs" / self.id

    @contextmanager
    def writing(self, store: Place) -> Iterator[Path]:
        """A folder on a disk for what the run keeps: its own, or one whose files go there at the end."""
        folder = self.folder(store)
        if isinstance(folder, Path):
            yield folder
            return
        with TemporaryDirectory() as held:
            yield Path(held)
            for path in sorted(path for path in Path(held).rglob("*") if path.is_file()):
                write_whole(folder / path.relative_to(held).as_posix(), path.read_bytes())

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.monotonic() - self._clock

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Time a stage."""
        start = time.monotonic()
        yield
        self._stages[f"{stage}_seconds"] = time.monotonic() - start

    def write(self, store: Place, outcome: "Outcome", expected: Expected, findings: pa.Table | None = None) -> None:
        """Write the run's row, and the findings where nothing was published that could hold them."""
        row = {
            "run": self.id,
            "command": self._command,
            "source": self._config.source,
            "input": str(self._config.input),
            "outcome": outcome.outcome,
            "started": self.started,
            "seconds": self.seconds,
            "workers": self._config.workers,
            **{
                name: getattr(outcome, name)
                for name in ("listed", "stored", "rejected", "new", "parts", "parts_built", "raw_byte", "stored_byte")
            },
            "expectations": expected.expectations,
            "expectations_met": expected.met,
            "version": outcome.version,
            "scenemill": scenemill.__version__,
            "runner": self._runner,
            **self._stages,
            "software": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _SOFTWARE),
        }
        write_rows(self.folder(store) / "run.parquet", table_of(RUNS, [row]))
        if findings is not None:
            write_rows(self.folder(store) / "findings.parquet", findings)
