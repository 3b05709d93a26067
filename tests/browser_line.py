"""A line to a server that can be cut, and be slow."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

FAREWELL = b'{"msg":"close_stream"'  # ends Gradio's stream of answers


class Line:
    """The line between a browser and the server: what a sleeping laptop has cut until it wakes.

    `slow_farewell` are the seconds by which the last word of Gradio's stream comes late, as a lost packet has it.
    """

    def __init__(self, server: str) -> None:
        self.slow_farewell = 0.0
        self.farewells = 0  # on their way or come
        self._server = urlsplit(server).port
        self._whole = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._server))
                self._ends |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                before, farewell, after = data.partition(FAREWELL)
                other.sendall(before)
                if farewell:
                    self.farewells += 1
                    time.sleep(self.slow_farewell)
                    other.sendall(farewell + after)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        self._ends.discard(one)
        one.close()
