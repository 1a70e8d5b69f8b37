"""A gateway of one test's own to the S3 store of deploy/services.sh, which may be stopped; and users with a quota."""

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.ports import free_port
from support.services import missing

STORE = Path(os.environ.get("TUTTI_SERVICES_DIR", "/var/tmp/tutti-services")) / "s3"  # of deploy/services.sh
ENVIRONMENT = {**os.environ, "CEPH_CONF": str(STORE / "ceph.conf")}
NAME = ["-n", "client.rgw.a"]


class Gateway:
    """`url` stays the same, however often it is stopped and started again; the store behind it goes on."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes connections."""
        options = {
            "rgw_frontends": f"beast endpoint=127.0.0.1:{self._port} tcp_nodelay=1",
            "admin_socket": self._folder / "gateway.asok",
            "log_file": self._folder / "gateway.log",
        }
        with (self._folder / "gateway.out").open("ab") as out:
            self._process = subprocess.Popen(
                ["radosgw", *NAME, "-f", *(f"--{name}={value}" for name, value in options.items())],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        last = time.monotonic() + 60
        while time.monotonic() < last and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5):
                return
            time.sleep(0.05)
        raise TimeoutError(f"the gateway did not start; see {self._folder / 'gateway.out'}")

    def stop(self) -> None:
        """Not by `kill -9`: others of this store would wait half a minute for its answer whenever a bucket is made."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    _need_store()
    server = Gateway(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def user_with_quota(limit: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The name and keys of a user whose buckets may hold so many bytes; they are gone afterwards."""
    _need_store()
    uid = f"tutti-test-{secrets.token_hex(6)}"
    keys = {"AWS_ACCESS_KEY_ID": uid, "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    key, secret = keys.values()
    admin("user", "create", "--uid", uid, "--display-name", uid, "--access-key", key, "--secret-key", secret)
    try:
        set_quota(uid, limit)
        admin("quota", "enable", "--quota-scope", "user", "--uid", uid)
        yield uid, keys
    finally:
        admin("user", "rm", "--uid", uid, "--purge-data")


def set_quota(uid: str, limit: int) -> None:
    admin("quota", "set", "--quota-scope", "user", "--uid", uid, "--max-size", limit)


def admin(*arguments: object) -> None:
    command = ["radosgw-admin", *NAME, *map(str, arguments)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=60)


def _need_store() -> None:
    if not (STORE / "ceph.conf").exists():
        missing("the S3 store's configuration", f"{STORE / 'ceph.conf'} is not there")
