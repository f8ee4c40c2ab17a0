"""The job service: its folder, its token, its worker, and its HTTP server, which is local unless told otherwise."""

import fcntl
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import uvicorn

from scenemill.pipelines import web_patience
from scenemill.pipelines.jobs.answers import make_app
from scenemill.pipelines.jobs.desk import JobDesk
from scenemill.pipelines.jobs.guard import JobAccess, JobGuard
from scenemill.pipelines.jobs.metrics import JobMetrics
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.store import JobStore
from scenemill.pipelines.jobs.token import make_token
from scenemill.pipelines.jobs.worker import JobWorker
from scenemill.pipelines.web_access import ANY, HOME, bind, url_of
from scenemill.schemas.errors import ConfigError, Conflict

PORT: Final = 8090

_CONNECTIONS: Final = 128
_PATIENCE_S: Final = 2  # for answers under way when the service ends


@dataclass(frozen=True)
class JobServiceConfig:
    """One service.

    Attributes:
        roots: folders that jobs may read and write.
        home: the service's own folder: table of jobs, token, logs, and results that go nowhere else.
        host: the address to serve at; beyond this machine only if it is named.
        port: 0 for a free one.
        slots: how many jobs run at once; 0 to run none and keep the queue.
        grace_s: from the interrupt of a cancelled job to its end by force.
        names: further hosts that requests may be addressed to, as behind a proxy.

    Raises:
        ConfigError: no folder, or a number out of range.
    """

    roots: tuple[Path, ...]
    home: Path
    host: str = "127.0.0.1"
    port: int = PORT
    slots: int = 1
    grace_s: float = 30.0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.roots:
            raise ConfigError("serve-jobs: no root; name with --root each folder that jobs may read and write")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"serve-jobs: port {self.port}; give one from 0 to 65535, 0 for a free one")
        if not 0 <= self.slots <= 1024:
            raise ConfigError(f"serve-jobs: {self.slots} slots; give 0 to 1024")
        if not 0 <= self.grace_s <= 86400:
            raise ConfigError(f"serve-jobs: grace {self.grace_s:g} s; give 0 to 86400")
        if self.host in ANY and not self.names:
            raise ConfigError("serve-jobs: at any address, name with --name the hosts that requests are addressed to")


class JobService:
    """A service that is bound to its port; serve it with ``run``, or in the background as a context manager.

    Args:
        config: what, where, and for whom.

    Raises:
        ConfigError: a folder or token that cannot be used, or the port is taken.
        Conflict: another service has the folder.
    """

    def __init__(self, config: JobServiceConfig) -> None:
        roots = JobRoots(config.roots, config.home)
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        config.home.chmod(0o700)
        with ExitStack() as held:
            held.enter_context(_hold(config.home))
            address = held.enter_context(bind(config.host, config.port, _CONNECTIONS, "serve-jobs"))
            store = held.enter_context(closing(JobStore(config.home / "jobs.sqlite")))
            token = make_token(config.home)
            self._held = held.pop_all()
        self._worker = JobWorker(store, roots, config.home.resolve(), config.slots, config.grace_s)
        metrics = JobMetrics(store, config.slots)
        app = make_app(JobDesk(store, roots, self._worker.wake), metrics)
        names = frozenset({config.host, *config.names, *(HOME if config.host in (*HOME, *ANY) else ())}) - set(ANY)
        guard = JobGuard(app, JobAccess(names, token, web_patience.HEAD_S))
        self.url = url_of(config.host, address)
        self._server = uvicorn.Server(_settings(metrics.watch(guard)))
        self._serve = partial(self._server.run, sockets=[address])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def run(self) -> None:
        """Serve until stopped. Jobs that run then go on; the next service of the same folder finds them."""
        self._worker.start()
        try:
            self._serve()
        finally:
            self._let_go()

    def close(self) -> None:
        """End a service in the background."""
        self._server.should_exit = True
        self._thread.join()
        self._let_go()

    def _let_go(self) -> None:
        self._worker.close()
        self._held.close()

    def __enter__(self) -> "JobService":
        self._worker.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _settings(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        loop="asyncio",
        http=web_patience.ImpatientProtocol,
        ws="none",
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_PATIENCE_S,
    )


def _hold(home: Path) -> IO[str]:
    """Hold a folder for one service. The lock is the operating system's: it goes when the process does."""
    lock = (home / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise Conflict(f"home {home}: another service has it; end that one, or give another --home") from error
    return lock
