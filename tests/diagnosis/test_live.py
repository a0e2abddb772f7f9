"""The server of a page that refreshes itself: which client gets what from it."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tapwright.diagnosis.live import Live
from tapwright.diagnosis.way import Picture
from tapwright.errors import SandboxNotFoundError
from tapwright.metrics import serving
from tests.diagnosis import pictures

pytestmark = pytest.mark.unit


class Looking:
    """What is looked at has one NIC more each time."""

    def __init__(self) -> None:
        self.count = 0
        self.is_gone = False

    def __call__(self) -> list[Picture]:
        if self.is_gone:
            raise SandboxNotFoundError("there is no sandbox 'box'")
        self.count += 1
        return [
            pictures.picture(*(pictures.nic(f"eth{n}", index=n + 2) for n in range(self.count)))
        ]


@pytest.fixture
def looking() -> Looking:
    return Looking()


@pytest.fixture
def served(looking: Looking) -> Iterator[Live]:
    server = Live(looking)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join()


def get(served: Live, path: str, **headers: str) -> tuple[int, str]:
    host, _, port = served.host.partition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def path_of(served: Live) -> str:
    return served.address.removeprefix(f"http://{served.host}")


def test_who_has_the_address_gets_the_page(served: Live) -> None:
    status, text = get(served, path_of(served))
    assert (status, text[:15]) == (200, "<!DOCTYPE html>")
    status, text = get(served, f"{path_of(served)}fragment")
    assert (status, text[:8]) == (200, "<header>")


def test_who_has_not_gets_nothing(served: Live) -> None:
    for path in ("/", "/page", "/../", path_of(served)[:-2], f"{path_of(served)}other", "//" * 500):
        assert get(served, path)[0] == 404, path
    assert len(path_of(served)) > 30


def test_the_path_is_another_one_each_time(served: Live) -> None:
    other = Live(list)
    other._server.server_close()
    assert path_of(other) != path_of(served)


@pytest.mark.parametrize("name", ["example.org", "localhost", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_name_for_it_is_refused(served: Live, name: str) -> None:
    """As that of a page of another site, which a name server has lead here."""
    assert get(served, path_of(served), Host=name)[0] == 403


def test_it_listens_on_the_loopback_alone(served: Live) -> None:
    assert served.host.startswith("127.0.0.1:")


def test_a_sandbox_that_has_gone(served: Live, looking: Looking) -> None:
    looking.is_gone = True
    assert get(served, path_of(served)) == (503, "there is no sandbox 'box'\n")


def test_however_many_look_it_looks_once_a_second(served: Live, looking: Looking) -> None:
    served._when = float("inf")  # it has just looked
    served._seen = looking()
    for _ in range(10):
        assert get(served, path_of(served))[0] == 200
    assert looking.count == 1


def test_connections_are_bounded(served: Live) -> None:
    host, _, port = served.host.partition(":")
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            for _ in range(serving.MOST_CONNECTIONS)
        ]
        # One that sends half a request keeps its place for a while, the next one is hung up on.
        for one in held:
            one.sendall(b"GET / HT")
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            get(served, path_of(served))
    status = 0
    while status != 200:  # as soon as the server has seen that they are gone
        try:
            status, _ = get(served, path_of(served))
        except (ConnectionError, http.client.BadStatusLine):
            continue
