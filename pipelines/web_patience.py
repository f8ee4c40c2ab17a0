"""How long the servers of this package wait for those who say nothing: connections are few, and should not be held for nothing."""

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S: Final = 10.0  # for the head of a request to arrive


class ImpatientProtocol(H11Protocol):
    """HTTP of which the head of every request must arrive within a time, else the connection is closed."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time for the first head begins."""
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """A head is complete, or the time for it runs."""
        super().data_received(data)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._clear_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        """From the first byte of a request until there is an answer under way; the first request of a connection begins with it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._clear_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
