"""A client of the job service, for Python.

with JobClient("http://127.0.0.1:8090", token) as jobs:
    first = jobs.create("train", {"dataset": {"train": {"base_dir": "/data/store"}}}, name="stage 1")
    second = jobs.create("train", {..., "train": {"checkpoint_2d": "{parent.checkpoint}"}}, parent=first.id)
    for text in jobs.logs(second.id):
        print(text, end="")
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx

from scenemill.schemas.errors import ConfigError, Conflict, SceneMillError, TransientError
from scenemill.schemas.jobs import ENDED, KINDS, RUNNING, Job, JobDetail, LogPiece

_TIMEOUT_S: Final = 60.0
_WAIT_S: Final = 20.0  # of the service, for more of a log
_PAUSE_S: Final = 0.5  # between looks at a job that does not run
Kind = TypeVar("Kind", Job, JobDetail, LogPiece)


class JobClient:
    """Asks one service. Proxies and other settings of the environment are not used: the token goes to the address given, alone.

    Args:
        url: of the service, without a path.
        token: that its token file holds.
    """

    def __init__(self, url: str, token: str) -> None:
        try:
            self._http = httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S, trust_env=False
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"url {url!r}: {error}; give one such as http://127.0.0.1:8090") from error

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> "JobClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def kinds(self) -> list[str]:
        """Kinds of jobs that the service knows. Raises as ``show``."""
        names: list[str] = self._ask("GET", "/v1/kinds")
        return names

    def schema(self, kind: str) -> dict[str, Any]:
        """JSON Schema of a kind's spec; its ``default`` is a whole spec. Raises as ``show``."""
        schema: dict[str, Any] = self._ask("GET", f"/v1/kinds/{_part(kind)}")
        return schema

    def create(self, kind: str, spec: dict[str, Any], *, name: str = "", parent: str | None = None) -> JobDetail:
        """Create a job.

        Args:
            kind: of the job.
            spec: its settings; paths are the service's, absolute. ``{parent.NAME}`` stands for what the parent leaves.
            name: for people.
            parent: id of a job that must succeed first.

        Raises:
            ConfigError: as ``show``; or the spec is refused.
        """
        told = {"kind": kind, "spec": spec, "name": name, "parent": parent}
        try:
            body = json.dumps(told, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:  # such as a date, which YAML knows
            raise ConfigError(f"spec: {error}; give numbers, texts, lists and mappings") from error
        headers = {"Content-Type": "application/json"}
        return _made(JobDetail, self._ask("POST", "/v1/jobs", content=body, headers=headers))

    def list(self, states: Sequence[str] = (), kind: str = "", limit: int = 100) -> list[Job]:
        """Jobs, the newest first; empty ``states`` and ``kind`` are all. Raises as ``show``."""
        wanted = {"state": list(states), "limit": limit, **({"kind": kind} if kind else {})}
        return [_made(Job, told) for told in self._ask("GET", "/v1/jobs", params=wanted)]

    def show(self, job: str) -> JobDetail:
        """One job.

        Raises:
            ConfigError: no such job, a wrong token, or no such service.
            TransientError: the service cannot be reached, or failed.
        """
        return _made(JobDetail, self._ask("GET", f"/v1/jobs/{_id(job)}"))

    def cancel(self, job: str) -> JobDetail:
        """Cancel a job. Raises as ``show``; Conflict where it has ended."""
        return _made(JobDetail, self._ask("POST", f"/v1/jobs/{_id(job)}/cancel"))

    def resume(self, job: str) -> JobDetail:
        """Queue a job again. Raises as ``show``; Conflict where it succeeded or has not ended."""
        return _made(JobDetail, self._ask("POST", f"/v1/jobs/{_id(job)}/resume"))

    def log(self, job: str, offset: int = 0, wait_s: float = 0.0) -> LogPiece:
        """The next piece of a log; up to ``wait_s`` seconds are waited for it while the job runs. Raises as ``show``."""
        wanted = {"offset": offset, "wait_s": wait_s}
        return _made(LogPiece, self._ask("GET", f"/v1/jobs/{_id(job)}/log", params=wanted))

    def logs(self, job: str, *, follow: bool = True) -> Iterator[str]:
        """What a job prints, from the beginning.

        Args:
            job: its id.
            follow: until the job has ended; False for what there is now.

        Raises as ``show``.
        """
        offset = 0
        while True:
            piece = self.log(job, offset, _WAIT_S if follow else 0.0)
            offset = piece.next
            if piece.text:
                yield piece.text
            elif piece.state in ENDED or not follow:
                return
            elif piece.state != RUNNING:
                time.sleep(_PAUSE_S)

    def wait(self, job: str) -> JobDetail:
        """The job when it has ended. Raises as ``show``."""
        for _ in self.logs(job):
            pass
        return self.show(job)

    def _ask(self, method: str, path: str, **what: Any) -> Any:
        try:
            answer = self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            told = f"{self._http.base_url}: {error or type(error).__name__}; is scenemill serve-jobs running there?"
            raise TransientError(told) from error
        except httpx.InvalidURL as error:
            raise ConfigError(f"{path[:200]!r}: {error}") from error
        if answer.is_success:
            return answer.json()
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> SceneMillError:
    try:
        told = answer.json()["error"]
        whole = told["kind"] in (ConfigError.__name__, Conflict.__name__) or answer.status_code == 404
        words = told["what"] if whole else f"{told['what']}; {told['now']}"
    except (ValueError, KeyError, TypeError):
        words = f"{answer.url.host} answered {answer.status_code}, but not as a job service does; check the url"
    kinds = {409: Conflict, 408: TransientError, 500: TransientError, 503: TransientError}
    return kinds.get(answer.status_code, ConfigError)(words)


def _id(job: str) -> str:
    """An id as a part of a path.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch("[0-9a-f]{16}", job):
        raise ConfigError(f"job {job[:80]!r}: no id of a job, which has 16 digits and letters; scenemill jobs list shows them")
    return job


def _part(text: str) -> str:
    """The name of a kind as a part of a path.

    Raises:
        ConfigError: it holds other signs than names do.
    """
    if not (text.isascii() and text.isalnum()):
        raise ConfigError(f"{text[:80]!r}: no kind of a job; kinds are {', '.join(KINDS)}")
    return text


def _made(kind: type[Kind], told: dict[str, Any]) -> Kind:
    """What a service told, also one that tells more."""
    return kind(**{one.name: told[one.name] for one in fields(kind)})
