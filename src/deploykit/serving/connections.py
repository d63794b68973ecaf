"""uvicorn's connections over httptools, with a bound on what a client may send before its headers are whole."""

from __future__ import annotations

import math

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 65_536  # as h11 has it; httptools would collect headers until memory ends


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request line and headers go on for too long."""

    head_bytes = 0.0

    def data_received(self, data: bytes) -> None:
        """Count what comes before the headers are whole."""
        self.head_bytes += len(data)
        super().data_received(data)
        if self.head_bytes > MOST_HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Count anew."""
        self.head_bytes = 0.0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Count no more: a body has a limit of its own."""
        self.head_bytes = -math.inf
        super().on_headers_complete()
