import os
import socket
import threading

import pytest

from axiond.errors import AxiondError
from axiond.gateway.app import serve_rest
from axiond.gateway.listen import inherited_sockets, listen
from axiond.gateway.metrics import Metrics
from axiond.manifest.spec import Server
from axiond.routing.router import Router


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost", "[::1]"])
async def test_it_listens_where_it_is_told(where: str) -> None:
    router = Router(lambda: None)
    async with serve_rest(router, Server(listen=f"{where}:0"), Metrics(router)) as (host, port):
        assert (host in ("127.0.0.1", "::1"), port > 0) == (True, True)


async def test_a_port_in_use_is_told_in_a_sentence() -> None:
    router = Router(lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AxiondError, match=f"cannot listen on {listen}: Address already in use"):
            async with serve_rest(router, Server(listen=listen), Metrics(router)):
                pass


@pytest.mark.parametrize("listen", ["203.0.113.1:80", "127.0.0.1:99999"])
async def test_an_impossible_address_is_told(listen: str) -> None:
    router = Router(lambda: None)
    with pytest.raises(AxiondError, match="cannot listen on"):
        async with serve_rest(router, Server(listen=listen), Metrics(router)):
            pass


@pytest.mark.parametrize("where", ["127.0.0.1", "::1"])
def test_an_inherited_socket_on_the_address_is_used_and_others_are_closed(where: str) -> None:
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    other, ours, same = (socket.create_server((where, 0), family=family) for _ in range(3))
    host = f"[{where}]" if ":" in where else where
    with listen(f"{host}:{ours.getsockname()[1]}", [other, ours, same]) as found:
        assert found is ours
        assert (other.fileno(), same.fileno()) == (-1, -1)


def test_an_address_that_a_kept_socket_holds_a_part_of() -> None:
    """As after an edit from 127.0.0.1 to 0.0.0.0: systemd has to close what it keeps before the port is free."""
    old = socket.create_server(("127.0.0.1", 0))
    where, kept = f"0.0.0.0:{old.getsockname()[1]}", old.dup()
    systemd = threading.Timer(0.2, kept.close)
    with listen(where, [old], systemd.start) as found:
        assert found.getsockname()[0] == "0.0.0.0"
        assert kept.fileno() == -1
    systemd.join()


def test_an_inherited_socket_that_does_not_listen_is_not_used() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(AxiondError, match="Address already in use"), socket.create_server(("127.0.0.1", 0)) as taken:
            listen(f"127.0.0.1:{taken.getsockname()[1]}", [bound])
        assert bound.fileno() == -1


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}])
def test_sockets_for_somebody_else_are_left_alone(environ: dict[str, str]) -> None:
    assert inherited_sockets(environ) == []
