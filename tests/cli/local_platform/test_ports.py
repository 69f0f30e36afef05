"""A reserved port is free for a server that names it, and is never chosen by the kernel."""

import socket
import sys

import pytest

from armature_cli.local_platform.ports import HOST, PortTaken, reserved_ports


def serve(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((HOST, port))
    server.listen()
    return server


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets sockets share a port this way")
def test_a_reserved_port_is_given_only_by_number() -> None:
    with reserved_ports(0) as (port,):
        for _ in range(2):
            serve(port).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        for _ in range(100_000):  # several times as many as there are ports to choose from
            with socket.socket() as other:
                other.bind((HOST, 0))
                assert other.getsockname()[1] != port


def test_requested_ports_are_kept_and_all_differ() -> None:
    with reserved_ports(0) as (port,):
        pass
    with reserved_ports(port, 0, 0) as ports:
        assert ports[0] == port
        assert len(set(ports)) == 3


def test_a_taken_port_is_named() -> None:
    with (
        reserved_ports(0) as (port,),
        serve(port),
        pytest.raises(PortTaken, match=f"port {port} is taken"),
        reserved_ports(0, port),
    ):
        pass
