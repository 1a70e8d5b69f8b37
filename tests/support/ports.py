"""Ports for servers in processes of their own."""

import errno
import socket
from random import SystemRandom

NOT_GIVEN_OUT = range(20_000, 32_000)
"""Below those from which the system takes one for each outgoing connection, which would be taken before a server is."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; drawn, so that tests beside each other rarely draw the same."""
    free: list[int] = []
    for port in SystemRandom().sample(NOT_GIVEN_OUT, len(NOT_GIVEN_OUT)):
        if len(free) == count:
            return free
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            free.append(port)
    raise AssertionError(f"{len(free)} of {count} ports are free")


def free_port() -> int:
    return free_ports(1)[0]
