"""What is written is read by Prometheus' own library; labels, sums of plugins, and guests that lie
or hang."""

import contextlib
import json
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tapwright import cni
from tapwright.hypervisor.machine import Machine
from tapwright.linux.counted import Counters
from tapwright.metrics import collecting, exposition, labels
from tapwright.metrics.asking import Asking
from tapwright.metrics.exposition import COUNTER, GAUGE, HISTOGRAM, INFO, Family
from tapwright.oci.state import Container
from tapwright.sandbox import wire
from tapwright.state import plugin_runs
from tapwright.state.record import RUNNING, Nic, Record, Spec
from tapwright.state.registry import Sandbox

pytestmark = pytest.mark.unit

_PARSERS = "prometheus_client.openmetrics.parser", "prometheus_client.parser"
read_new, read_plain = (
    pytest.importorskip(
        name, reason="the package prometheus-client is not installed (scripts/setup dev)"
    ).text_string_to_metric_families
    for name in _PARSERS
)

ODD = 'a "b"\\n\nc'


def families() -> list[Family]:
    histogram = Family("t_plugin_duration_seconds", HISTOGRAM, "Runs.")
    histogram.add_histogram({"plugin": "bridge"}, {0.5: 1, 1.0: 3, math.inf: 4}, 7.25)
    found = [
        Family("t_bytes", COUNTER, "Bytes."),
        Family("t_age_seconds", GAUGE, "Age."),
        Family("t_sandbox", INFO, "What it is."),
        Family("t_nothing", GAUGE, "Not there."),
    ]
    found[0].add({"nic": ODD}, 2**60 + 1)
    found[1].add({}, 0.5)
    found[2].add({"netns": "/run/netns/x"})
    return [*found, histogram]


@pytest.mark.parametrize(
    ("write", "read"), [(exposition.openmetrics, read_new), (exposition.plain, read_plain)]
)
def test_what_is_written_is_what_can_be_read(write: Any, read: Any) -> None:
    text = write(families())
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in read(text)
        for sample in family.samples
    }
    assert found == {
        ("t_bytes_total", ("nic", ODD)): 2**60 + 1,
        ("t_age_seconds",): 0.5,
        ("t_sandbox_info", ("netns", "/run/netns/x")): 1,
        ("t_plugin_duration_seconds_bucket", ("le", "0.5"), ("plugin", "bridge")): 1,
        ("t_plugin_duration_seconds_bucket", ("le", "1.0"), ("plugin", "bridge")): 3,
        ("t_plugin_duration_seconds_bucket", ("le", "+Inf"), ("plugin", "bridge")): 4,
        ("t_plugin_duration_seconds_count", ("plugin", "bridge")): 4,
        ("t_plugin_duration_seconds_sum", ("plugin", "bridge")): 7.25,
    }
    assert "t_nothing" not in text


def container(annotations: dict[str, str], owns: bool = True) -> Container:
    return Container(id="c1", bundle="", sandbox="vm", owns=owns, annotations=annotations)


def test_names_of_platforms() -> None:
    by_cri = {
        "io.kubernetes.cri.sandbox-name": "web-1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.container-type": "sandbox",
    }
    assert labels.of_sandboxes([container(by_cri)]) == {
        "vm": {"pod": "web-1", "namespace": "shop", "container": ""}
    }
    by_crio = {
        "io.kubernetes.cri-o.KubeName": "web-1",
        "io.kubernetes.cri-o.Namespace": "shop",
        "io.kubernetes.container.name": "nginx",
    }
    assert labels.of_container(container(by_crio)) == {
        "pod": "web-1",
        "namespace": "shop",
        "container": "nginx",
    }
    # podman and docker tell a runtime no name.
    assert labels.of_container(container({})) == {"pod": "", "namespace": "", "container": "c1"}
    assert labels.of_sandboxes([container({}, owns=False)]) == {}


def run(plugin: str, seconds: float, problem: str = "", command: str = "ADD") -> cni.Run:
    return cni.Run("net", plugin, command, "", {}, "", "", "", 0, seconds, problem)


def test_runs_of_plugins_add_up_over_processes(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), plugin_runs.noted(tmp_path) as trace:
        trace(run("bridge", 0.03))
        trace(run("bridge", 99.0, "it failed"))
        raise ZeroDivisionError

    def note() -> None:
        with plugin_runs.noted(tmp_path) as trace:
            trace(run("bridge", 0.005))

    threads = [threading.Thread(target=note) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(one.plugin, one.result): one for one in plugin_runs.read(tmp_path)}
    done, failed = found["bridge", "success"], found["bridge", "failure"]
    assert done.cumulative[0.005] == 20
    assert (done.cumulative[0.025], done.cumulative[0.05], done.cumulative[math.inf]) == (
        20,
        21,
        21,
    )
    assert done.seconds == pytest.approx(0.13)
    assert (failed.cumulative[10.0], failed.cumulative[math.inf]) == (0, 1)
    # No more than so many, and what makes no sense is begun anew.
    with plugin_runs.noted(tmp_path) as trace:
        for number in range(300):
            trace(run(f"p{number}", 1.0))
    assert len(plugin_runs.read(tmp_path)) == 200
    for text in (
        "",
        "{",
        "{}",
        '[{"plugin": 5}]',
        "[" * 100_000,
        json.dumps([vars(done) | {"a": 1}]),
    ):
        (tmp_path / plugin_runs.FILE).write_text(text)
        assert plugin_runs.read(tmp_path) == []
    note()
    assert len(plugin_runs.read(tmp_path)) == 1


def test_a_place_that_takes_nothing_costs_nothing_else(tmp_path: Path) -> None:
    with plugin_runs.noted(tmp_path / "gone") as trace:
        trace(run("bridge", 1.0))
    assert plugin_runs.read(tmp_path / "gone") == []


def sandbox(directory: Path) -> Sandbox:
    nic = Nic("eth0", "eth0", "02:00:00:00:00:01", 1500, [])
    spec = Spec(Machine(Path(), Path()))
    record = Record("vm", spec, 1.0, 0.0, "/run/netns/vm", interfaces=[nic])
    return Sandbox(directory.name, RUNNING, directory, record)


def of_guest(directory: Path, said: Any) -> str:
    found = collecting._Families()
    collecting._add_totals(found, sandbox(directory), {"guest": said}, {"sandbox": "vm"})
    return exposition.plain(found.families.values())


def test_a_guest_that_lies_has_its_own_numbers_wrong(tmp_path: Path) -> None:
    counted = dict.fromkeys(Counters._fields, 7)
    said = {
        "cpu": {"user": 1500, "idle": -1, "steal": 2**64, "x\n": 5, "nice": True},
        "memory": "much",
        "segments": {"sent": 3.5, "retransmitted": 4},
        "tcp": {"listen": 2, "odd": 9},
        "interfaces": {"eth0": counted, "eth1": counted, "lo": counted},
    }
    text = of_guest(tmp_path, said)
    assert 'tapwright_guest_cpu_seconds_total{sandbox="vm",mode="user"} 1.5' in text
    assert 'tapwright_guest_tcp_segments_retransmitted_total{sandbox="vm"} 4' in text
    assert 'tapwright_guest_tcp_sockets{sandbox="vm",family="ipv4",state="listen"} 2' in text
    assert 'nic="eth0",point="guest",device="eth0"} 7' in text
    for absent in ("idle", "steal", "nice", "memory_", "segments_sent", "odd", "eth1", '"lo"'):
        assert absent not in text
    assert len(list(read_plain(text))) == 12
    counted.popitem()
    assert "nic_" not in of_guest(tmp_path, {"interfaces": {"eth0": counted}})
    assert "tapwright_guest_up{" + 'sandbox="vm"} 0' in of_guest(tmp_path, {})


def test_one_that_hangs_costs_its_own_answer_alone(tmp_path: Path) -> None:
    answering, hanging, gone = (tmp_path / name for name in ("answering", "hanging", "gone"))
    listeners = []
    for directory in (answering, hanging, gone):
        directory.mkdir()
        if directory != gone:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(directory / wire.SOCKET))
            listener.listen()
            listeners.append(listener)

    def answer() -> None:
        from tapwright.agent import protocol

        connection, _ = listeners[0].accept()
        with connection:
            asked = connection.recv(1000)
            content = {"result": {"asked": json.loads(asked)["op"]}}
            connection.sendall(protocol.message(protocol.REPLY, 0, 0, content))

    thread = threading.Thread(target=answer)
    thread.start()
    asking = Asking(map(sandbox, (answering, hanging, gone)), {"op": "totals"})
    assert asking.answers(time.monotonic() + 2) == {"answering": {"asked": "totals"}}
    thread.join()
    for listener in listeners:
        listener.close()
