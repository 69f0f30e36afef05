"""Reserved loopback ports, for servers that listen on a given port and may be restarted on it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

HOST = "127.0.0.1"


class PortTaken(Exception):
    """A requested port is in use."""


@contextmanager
def reserved_ports(*ports: int) -> Iterator[list[int]]:
    """Reserve the ports, a free one for each 0, all different; yield their numbers.

    A server can bind a reserved port by number, also when restarted: a socket that is bound but does not listen only
    keeps the port out of the kernel's own choices (both sides set SO_REUSEADDR, as servers do). A port that is free but
    not reserved may be the local end of a connection by the time a killed server restarts. Sockets share a port in this
    way on Linux; elsewhere the ports are free, but not reserved.

    Raises:
        PortTaken: A server listens on one of them; the message names it.
    """
    with ExitStack() as reservations:
        reserved: list[int] = []
        for port in ports:
            reservation = reservations.enter_context(socket.socket())
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reservation.bind((HOST, port))
            except OSError as error:
                raise PortTaken(f"port {port} is taken; choose another one, or 0 for any") from error
            reserved.append(reservation.getsockname()[1])
        if sys.platform != "linux":
            reservations.close()
        yield reserved
