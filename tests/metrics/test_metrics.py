"""`tapwright metrics` beside real sandboxes, read by Prometheus' own library, and checked by
promtool where it is installed."""

import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.sandboxes import Tapwright, pids_of

VM, OTHER = "metered", "metered-too"

_PARSERS = "prometheus_client.openmetrics.parser", "prometheus_client.parser"
read_new, read_plain = (
    pytest.importorskip(
        name, reason="the package prometheus-client is not installed (scripts/setup dev)"
    ).text_string_to_metric_families
    for name in _PARSERS
)


class Metrics:
    """The samples of a scrape."""

    def __init__(self, read: Any, text: str) -> None:
        self.samples = [sample for family in read(text) for sample in family.samples]

    def all(self, name: str, **labels: str) -> list[Any]:
        return [
            sample
            for sample in self.samples
            if sample.name == f"tapwright_{name}" and labels.items() <= sample.labels.items()
        ]

    def __call__(self, name: str, **labels: str) -> float:
        (found,) = self.all(name, **labels)
        return float(found.value)


def scrape(tapwright: Tapwright, *answering: str) -> Metrics:
    """One in which these guests have answered, for which they have a second: on a busy machine that
    may not be the first one."""
    found: list[Metrics] = []

    def is_whole() -> bool:
        done = tapwright.run("metrics")
        assert (done.returncode, done.stderr) == (0, "")
        found[:] = [Metrics(read_new, done.stdout)]
        return all(found[0]("guest_up", sandbox=name) == 1 for name in answering)

    assert eventually(is_whole)
    return found[0]


@pytest.fixture(scope="module")
def address(tapwright: Tapwright) -> Iterator[str]:
    found = tapwright.json("sandbox", "run", VM, "--network", "dual")
    assert tapwright.run("sandbox", "run", OTHER).returncode == 0
    (text,) = [one for one in found["interfaces"][0]["addresses"] if "." in one]
    yield text.partition("/")[0]
    for name in (VM, OTHER):
        tapwright.delete(name)


def test_what_is_counted_is_what_was_sent(tapwright: Tapwright, address: str) -> None:
    before = scrape(tapwright, VM)
    ping = ["ping", "-q", "-i", "0.01", "-c", "20", "-s", "1000", address]
    subprocess.run(ping, check=True, stdout=subprocess.DEVNULL)
    after = scrape(tapwright, VM)
    for point in ("guest", "tap", "interface", "host"):
        for way in ("receive", "transmit"):
            for name, least in (("packets", 20), ("bytes", 20_000)):
                which = {"sandbox": VM, "nic": "eth0", "point": point}
                metric = f"nic_{way}_{name}_total"
                grown = after(metric, **which) - before(metric, **which)
                assert least <= grown < 3 * least, (point, metric)
    assert after("nic_receive_errors_total", sandbox=VM, point="guest") == 0


def test_what_there_is(tapwright: Tapwright, address: str) -> None:
    listening = ["sandbox", "exec", VM, "--", "nc", "-l", "-p", "4711"]

    def is_listening() -> bool:
        found = scrape(tapwright).all("guest_tcp_sockets", sandbox=VM, state="listen")
        return any(sample.value >= 1 for sample in found)

    with subprocess.Popen(tapwright.command(*listening), stdin=subprocess.PIPE) as listener:
        try:
            assert eventually(is_listening)
        finally:
            listener.kill()
    found = scrape(tapwright, VM, OTHER)
    assert found("sandbox_state", sandbox=VM, state="running") == 1
    assert found("sandbox_state", sandbox=VM, state="dead") == 0
    assert found("sandbox_info", sandbox=VM, pod="", netns=f"/run/netns/tapwright-{VM}") == 1
    assert found("sandbox_age_seconds", sandbox=VM) > 0
    assert found("sandbox_start_phase_seconds", sandbox=VM, phase="network dual") > 0
    size = found("guest_memory_size_bytes", sandbox=VM)
    assert size / 2 < found("sandbox_memory_bytes", sandbox=VM) < size * 2
    assert found("guest_cpu_seconds_total", sandbox=VM, mode="system") > 0
    described = tapwright.json("sandbox", "inspect", VM)
    supervisor, qemu = pids_of(described)
    for process, pid in (("supervisor", supervisor), ("qemu", qemu)):
        which = {"sandbox": VM, "process": process}
        assert found("process_resident_memory_bytes", **which) > 1 << 20
        assert abs(found("process_open_fds", **which) - len(os.listdir(f"/proc/{pid}/fd"))) < 10
        assert found("process_cpu_seconds_total", **which) > 0
    assert found("templates") >= 1
    assert found("templates_size_bytes") > 1 << 20
    assert found("spares", state="ready") == 0


def test_plugins_are_counted_beyond_the_end_of_a_sandbox(tapwright: Tapwright) -> None:
    name = "cni_plugin_duration_seconds_count"

    def counts() -> list[float]:
        found = scrape(tapwright)
        which = [{"command": command, "result": "success"} for command in ("ADD", "DEL")]
        return [
            sum(sample.value for sample in found.all(name, plugin="bridge", **one)) for one in which
        ]

    before = counts()
    assert tapwright.run("sandbox", "run", "short", "--network", "six").returncode == 0
    assert eventually(lambda: counts() == [before[0] + 1, before[1]])
    tapwright.delete("short")
    assert eventually(lambda: counts() == [before[0] + 1, before[1] + 1])


def test_a_guest_that_does_not_answer_costs_its_own_series(
    tapwright: Tapwright, address: str
) -> None:
    _, qemu = pids_of(tapwright.json("sandbox", "inspect", OTHER))
    os.kill(qemu, signal.SIGSTOP)
    try:
        found = scrape(tapwright, VM)
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert found("guest_up", sandbox=OTHER) == 0
    assert found.all("guest_memory_size_bytes", sandbox=OTHER) == []
    assert found("sandbox_state", sandbox=OTHER, state="running") == 1
    assert found("process_open_fds", sandbox=OTHER, process="qemu") > 0


@pytest.mark.smoke
def test_a_file_for_node_exporter(tapwright: Tapwright, address: str, tmp_path: Path) -> None:
    file = tmp_path / "tapwright.prom"

    def is_written() -> bool:
        assert tapwright.run("metrics", "--textfile", str(file)).returncode == 0
        return Metrics(read_plain, file.read_text())("guest_up", sandbox=VM) == 1

    assert eventually(is_written)
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == [file.name]
    done = tapwright.run("metrics", "--textfile", str(tmp_path / "metrics.txt"))
    assert (done.returncode, "*.prom" in done.stderr) == (2, True)
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (package prometheus): names were not checked")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_answers_over_http(tapwright: Tapwright, address: str) -> None:
    command = tapwright.command("metrics", "--listen", "127.0.0.1:0")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            url = server.stderr.readline().split()[-1]
            assert url.startswith("http://127.0.0.1:")
            for accept, kind, read in (
                ("application/openmetrics-text;version=1.0.0", "openmetrics", read_new),
                ("*/*", "text/plain", read_plain),
            ):
                asked = urllib.request.Request(url, headers={"Accept": accept})
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    assert kind in answer.headers["Content-Type"]
                    text = answer.read().decode()
                assert Metrics(read, text)("sandbox_state", sandbox=VM, state="running") == 1
            for request, status in (
                (urllib.request.Request(url.replace("metrics", "")), 404),
                (urllib.request.Request(url, data=b"x"), 501),
            ):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(request, timeout=60)
                assert refused.value.code == status
            # A port that is taken.
            port = url.split(":")[2].partition("/")[0]
            done = tapwright.run("metrics", "--listen", f"127.0.0.1:{port}")
            assert done.returncode == 1
            assert "can't listen there" in done.stderr
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_addresses_that_are_none(tapwright: Tapwright) -> None:
    for text in ("9100", ":9100", "127.0.0.1:x", "127.0.0.1:70000"):
        assert tapwright.run("metrics", "--listen", text).returncode == 2
