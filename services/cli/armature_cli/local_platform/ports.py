"""Loopback ports that stay with their owner, for servers that are started by number and may be started again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

HOST = "127.0.0.1"


class PortTaken(Exception):
    """Something listens on a port that was asked for."""


@contextmanager
def reserved_ports(*ports: int) -> Iterator[list[int]]:
    """The ports, with a free one in place of each 0, no two alike; inside, the kernel gives them to nobody.

    A server that asks for one by number gets it, as often as it is started: a socket that is bound but does not listen
    only keeps the port out of the kernel's own choices (both sides set SO_REUSEADDR, as servers do). A port that is
    merely free now may be one end of somebody's connection by the time a killed server comes back. Sockets share a port
    in this way on Linux; elsewhere it is merely free.

    Raises:
        PortTaken: Something listens on one of them; the message names it.
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
