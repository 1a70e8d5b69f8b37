"""A line between two programs that can break, or go dead without a word, as when a lid is closed."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1 << 16


class Line:
    """Forwards TCP connections to a port of this machine; `url` is its own address."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []  # WebSockets
        self._all: list[socket.socket] = []
        self._is_cut = False
        self._dead: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def go_dead(self) -> int:
        """From now on nothing comes through the WebSockets that are open, and nobody is told; returns how many."""
        self._dead.update(self._open)
        return len(self._open)

    def cut(self) -> None:
        """Everything that is open breaks and nothing can be opened, as in a tunnel, until `mend`."""
        self._is_cut = True
        for one in self._all:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        for one in (self._listener, *self._all):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                self._all.append(browser)
                if self._is_cut:
                    browser.close()
                    continue
                threading.Thread(target=self._connect, args=(browser,), daemon=True).start()

    def _connect(self, browser: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:  # nobody listens: whoever called is told, as without a line
            browser.close()
            return
        with suppress(OSError), server:
            first = browser.recv(CHUNK)
            if first.startswith(b"GET /ws"):
                self._open.append(browser)
            server.sendall(first)
            threading.Thread(target=self._forward, args=(server, browser, browser), daemon=True).start()
            self._forward(browser, server, browser)

    def _forward(self, source: socket.socket, target: socket.socket, browser: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if browser not in self._dead:
                    target.sendall(data)
            if browser not in self._dead:
                target.shutdown(socket.SHUT_WR)


@contextmanager
def line_to(url: str) -> Iterator[Line]:
    line = Line(int(url.rsplit(":", 1)[1]))
    try:
        yield line
    finally:
        line.close()
