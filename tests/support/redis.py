"""A Redis of a test's own, which may be killed."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.commands import DEADLINE
from support.services import missing

PASSWORD = "a long word"
USER = ":a%20long%20word@"


@contextmanager
def redis_server(folder: Path, port: int, tls: tuple[Path, Path] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """At `port` of this machine; with `tls`, a certificate and its key, it takes nothing that is not encrypted."""
    command = shutil.which("redis-server") or missing("Redis", "it is not installed")
    options = ["--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD, "--dir", str(folder)]
    if tls is None:
        options += ["--port", str(port)]
    else:
        cert, key = map(str, tls)
        options += ["--port", "0", "--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key]
        options += ["--tls-ca-cert-file", cert, "--tls-auth-clients", "no"]
    process = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL)
    try:
        last = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < last
        yield process
    finally:
        process.kill()
        process.wait()
