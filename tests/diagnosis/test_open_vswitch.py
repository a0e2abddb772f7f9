"""`sandbox explain` where the guest is on a bridge of Open vSwitch; where TAPWRIGHT_CATALOGUE is
`all`, for the switch takes long to start."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.diagnosis import explaining
from tapwright.diagnosis.case import Explanation, Wish
from tapwright.state import registry
from tests.diagnosis.test_catalogue import ALL, note
from tests.host import eventually
from tests.ovs import VSWITCHD, OpenVSwitch
from tests.sandboxes import Tapwright

if not ALL:
    pytest.skip("TAPWRIGHT_CATALOGUE is not all", allow_module_level=True)
if not Path(VSWITCHD).exists():
    pytest.skip(f"{VSWITCHD} is not installed", allow_module_level=True)

NAME, BRIDGE, TAP = "switched", "br-oex", "twoex0"
TARGET = "10.89.0.1"


@pytest.fixture(scope="module")
def switch(tapwright: Tapwright) -> Iterator[OpenVSwitch]:
    directory = Path(tempfile.mkdtemp(prefix="ovs-"))
    made = OpenVSwitch(directory)
    before = os.environ.get("OVS_RUNDIR")
    os.environ["OVS_RUNDIR"] = str(directory)
    config = tapwright.configuration(
        {"disable_new_netns": True, "internetworking_model": "none"}, template=tapwright.templates
    )
    try:
        made.start()
        made.add_bridge(BRIDGE, f"{TARGET}/16")
        tap = ("--tap", f"{TAP},ovs={BRIDGE},ip=10.89.0.2/16")
        done = tapwright.run("sandbox", "run", NAME, *tap, config=config)
        assert done.returncode == 0, done.stderr
        yield made
        tapwright.delete(NAME)
    finally:
        made.stop()
        if before is None:
            del os.environ["OVS_RUNDIR"]
        else:
            os.environ["OVS_RUNDIR"] = before
        shutil.rmtree(directory)


def explained(tapwright: Tapwright) -> Explanation:
    return explaining.explain(registry.find(tapwright.root, NAME), Wish(TARGET))


@pytest.mark.parametrize(
    ("name", "make", "word", "mend"),
    [
        (
            "a flow of Open vSwitch drops it",
            ("ofctl", "add-flow", BRIDGE, "priority=500,in_port={port},actions=drop"),
            "a flow",
            ("ofctl", "del-flows", BRIDGE, "in_port={port}"),
        ),
        (
            "a port of Open vSwitch in another VLAN",
            ("vsctl", "set", "port", TAP, "tag=7"),
            "VLAN tag 7",
            ("vsctl", "clear", "port", TAP, "tag"),
        ),
    ],
)
def test_a_fault_is_named_and_mended(
    tapwright: Tapwright,
    switch: OpenVSwitch,
    name: str,
    make: tuple[str, ...],
    word: str,
    mend: tuple[str, ...],
) -> None:
    assert eventually(lambda: explained(tapwright).arrives), explained(tapwright)
    port = switch.vsctl("get", "Interface", TAP, "ofport")

    def carry_out(words: tuple[str, ...]) -> None:
        tool, *rest = (one.replace("{port}", port) for one in words)
        switch.run_tool(f"ovs-{tool}", *rest)

    carry_out(make)
    # The datapath has the old flow for a moment.
    assert eventually(lambda: not explained(tapwright).arrives)
    begun = time.monotonic()
    answer = explained(tapwright)
    took = time.monotonic() - begun
    assert answer.verdict
    assert answer.verdict.hop == "ovs"
    assert word in answer.verdict.why
    assert answer.verdict.remedy
    for command in answer.verdict.remedy:
        switch.run_tool("bash", "-c", command)
    arrives = eventually(lambda: explained(tapwright).arrives)
    carry_out(mend)
    note(name, {"verdict": vars(answer.verdict)}, arrives, took)
    assert arrives, answer
