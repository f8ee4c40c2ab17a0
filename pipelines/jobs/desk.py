"""What clients may do with jobs, whatever way they ask: create, list, look, read the log, cancel, resume."""

import codecs
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.run import LOG, write_json
from scenemill.pipelines.jobs.specs import REQUEST_FILE, check_needed, check_spec, without_secrets
from scenemill.pipelines.jobs.store import JobStore, new_id
from scenemill.schemas.jobs import ENDED, JobDetail, JobRequest, LogPiece
from scenemill.schemas.steps import reached

PIECE_BYTE: Final = 1 << 18
"""Of a log, at most, in one answer."""


class JobDesk:
    """Where jobs are handed in and asked about.

    Args:
        store: the table of jobs.
        roots: where their paths may be.
        wake: called when there is something to do for the worker.
    """

    def __init__(self, store: JobStore, roots: JobRoots, wake: Callable[[], None]) -> None:
        self.store, self._roots, self._wake = store, roots, wake

    def create(self, request: JobRequest) -> JobDetail:
        """Queue a job.

        Raises:
            ConfigError: no such parent, or a spec that can never run.
        """
        parent = None if request.parent is None else self.store.get(request.parent).kind
        check_spec(request.kind, request.spec, self._roots, parent)
        check_needed(request.kind, request.spec)
        name = new_id()
        folder = self._roots.folder(name)
        folder.mkdir(parents=True, mode=0o700)
        write_json(folder / REQUEST_FILE, request.spec)
        reached("request kept")
        made = self.store.add(name, request, without_secrets(request.kind, request.spec))
        reached("job queued")
        self._wake()
        return made

    def cancel(self, name: str) -> JobDetail:
        """Cancel a job; one that runs ends a little later.

        Raises:
            ConfigError: no such job.
            Conflict: it has ended.
        """
        cancelled = self.store.cancel(name)
        reached("cancel recorded")
        self._wake()
        return cancelled

    def resume(self, name: str) -> JobDetail:
        """Queue a job again; its command goes on where it was.

        Raises:
            ConfigError: no such job.
            Conflict: it succeeded, or has not ended.
        """
        resumed = self.store.resume(name)
        self._wake()
        return resumed

    def log(self, name: str, offset: int) -> LogPiece:
        """The next piece of a log, of whole characters.

        Args:
            name: the job's id.
            offset: in bytes, from the beginning.

        Raises:
            ConfigError: no such job.
        """
        state = self.store.get(name).state
        data = b""
        with suppress(FileNotFoundError), (self._roots.folder(name) / LOG).open("rb") as file:
            file.seek(offset)
            data = file.read(PIECE_BYTE)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        rest, _ = decoder.getstate()
        if rest and state in ENDED and len(data) < PIECE_BYTE:  # half a character that nobody will complete
            text, rest = text + decoder.decode(b"", final=True), b""
        return LogPiece(offset, offset + len(data) - len(rest), state, text)


def read_request(roots: JobRoots, name: str) -> dict[str, Any]:
    """The spec of a job as it was given, secrets included.

    Raises:
        OSError: its file is gone.
        ValueError: the file is damaged.
    """
    document: dict[str, Any] = json.loads((roots.folder(name) / REQUEST_FILE).read_text())
    return document
