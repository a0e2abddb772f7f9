"""Each piece of Python in docs/library.md, as it is written there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapwright
from tests.host import Host
from tests.sandbox.test_kata_network import ip
from tests.sandboxes import Networks, Tapwright

PAGE = Path(__file__).parents[2] / "docs/library.md"
PIECES = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text())


@pytest.fixture
def reader(
    tapwright: Tapwright, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What a reader has: a network, a TAP, a configuration."""
    monkeypatch.setenv("TAPWRIGHT_CONFIG", str(tapwright.config))
    monkeypatch.setenv("TAPWRIGHT_ROOT", str(tapwright.root))
    dual = (networks.directory / "dual.conflist").read_text()
    (networks.directory / "mynet.conflist").write_text(dual.replace('"dual"', '"mynet"'))
    ip("tuntap add dev tap7 mode tap")
    yield
    ip("link delete tap7")
    (networks.directory / "mynet.conflist").unlink()


@pytest.mark.parametrize("piece", PIECES, ids=range(len(PIECES)))
def test_piece(piece: str, reader: None, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"tapwright": tapwright}
    # A reader's machine is not as busy as that of the tests.
    piece = piece.replace("timeout=10)", "timeout=100)")
    exec(compile(piece, PAGE.name, "exec"), names)  # noqa: S102 - ours
    for line in piece.splitlines():
        if said := re.search(r"print\(.*\) +# (.*)", line):
            assert said[1] in capsys.readouterr().out
    assert tapwright.sandboxes() == []


def test_names_of_errors() -> None:
    table = PAGE.read_text().partition("## Errors")[2]
    named = set(re.findall(r"`(\w+Error)`", table)) - {"TimeoutError"}
    assert named == {name for name in tapwright.__all__ if name.endswith("Error")} - {"Error"}
