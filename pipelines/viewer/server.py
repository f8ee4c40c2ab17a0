"""The viewer: a read-only server of one page that shows logs of 3D checkpoints, stores, predictions and metric tables."""

import logging
import secrets
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import uvicorn

from scenemill.pipelines.viewer.answers import make_app
from scenemill.pipelines.viewer.guard import Access
from scenemill.pipelines.viewer.roots import Roots
from scenemill.pipelines.web_access import ANY, HOME, bind, url_of
from scenemill.pipelines.web_patience import ImpatientProtocol
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.places import Place
from scenemill.transforms.objects import place_of

_PARSER_LOG: Final = logging.getLogger("scenemill.trainers.timelapse_parser")
_CONNECTIONS: Final = 256
_PATIENCE_S: Final = 2  # for answers under way when the viewer ends


@dataclass(frozen=True)
class ViewConfig:
    """One viewer.

    Attributes:
        paths: folders to show; of object stores, stores and metric tables.
        host: the address to serve at; beyond this machine only if it is named.
        port: 0 for a free one.
        token: what askers must have; "" for none on this machine, and one made up elsewhere.
        poll_s: how often folders are looked at again.

    Raises:
        ConfigError: no folder, or a number out of range.
    """

    paths: tuple[Place, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    poll_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("view: no folder; give a log of 3D checkpoints, a store, predictions, metric tables, or several")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"view: port {self.port}; give one from 0 to 65535, 0 for a free one")
        if not 0.1 <= self.poll_s <= 3600:
            raise ConfigError(f"view: poll {self.poll_s:g} s; give 0.1 to 3600")
        if not ((self.token.isascii() and self.token.isalnum()) or self.token == ""):
            raise ConfigError("view: the token holds signs that an address cannot; use letters and digits")


class Viewer:
    """A viewer that is bound to its port; serve it with ``run``, or in the background as a context manager.

    Args:
        config: what, where, and for whom.

    Raises:
        ConfigError: no such folder, or the port is taken.
        StoreError: a store that cannot be opened.
    """

    def __init__(self, config: ViewConfig) -> None:
        self._socket = bind(config.host, config.port, _CONNECTIONS, "view")
        _PARSER_LOG.addFilter(self._is_news)
        try:
            self.roots = Roots(config.paths, config.poll_s)
        except BaseException:
            self._let_go()
            raise
        port = self._socket.getsockname()[1]
        token = config.token or ("" if config.host in HOME else secrets.token_hex(16))
        names = None if config.host in ANY else frozenset({config.host, *(HOME if config.host in HOME else ())})
        app = make_app(self.roots, Access(names, token, f"scenemill_{port}"))
        self.url = f"{url_of(config.host, self._socket)}/{f'?token={token}' if token else ''}"
        self._server = uvicorn.Server(_settings(app))
        self._thread = threading.Thread(target=self.run, daemon=True)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Nothing that the parser warns of, as the page says it too, and once."""
        return record.levelno >= logging.CRITICAL

    def run(self) -> None:
        """Serve until stopped."""
        self._server.run(sockets=[self._socket])

    def start(self) -> "Viewer":
        """Serve in the background, if it does not yet; returns at once, connections wait until it is ready."""
        if self._thread.ident is None:
            self._thread.start()
        return self

    def close(self) -> None:
        """End a viewer that serves in the background; one that was never started gives its port back."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._let_go()

    def _let_go(self) -> None:
        self._socket.close()
        _PARSER_LOG.removeFilter(self._is_news)

    def __enter__(self) -> "Viewer":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve(*paths: str | Place, port: int = 0, poll_s: float = 1.0) -> Viewer:
    """Show folders from a notebook or a test, on this machine.

    Args:
        paths: the folders, or URIs of stores and metric tables in object stores.
        port: 0 for a free one.
        poll_s: how often they are looked at again.

    Returns:
        The viewer, which serves already: ``url``, and ``close()``; or in a ``with`` statement.

    Raises:
        ConfigError: no such folder, or the port is taken.
    """
    return Viewer(ViewConfig(tuple(map(place_of, paths)), port=port, poll_s=poll_s)).start()


def _settings(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        loop="asyncio",
        http=ImpatientProtocol,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_PATIENCE_S,
    )
