"""`tapwright check` as a person or a script runs it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tapwright.hypervisor.machine import Machine
from tests.sandboxes import COMMAND, Networks, Tapwright

KATA_FILE = Path(__file__).parents[1] / "config" / "kata-qemu.toml"


def check(
    tapwright: Tapwright, config: Path | None = None, status: int = 0, **options: Any
) -> dict[str, Any]:
    """Run it with --json, insist on the exit status, and read the answer."""
    config = config or tapwright.configuration(accelerator="tcg")
    done = tapwright.run("check", "--json", config=config, **options)
    assert done.returncode == status, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["ready"] is (status == 0)
    assert ("a sandbox can't start here" in done.stderr) is (status == 1)
    return answer


def named(answer: dict[str, Any], name: str) -> dict[str, str]:
    """The first finding of that name."""
    found: dict[str, str] = next(entry for entry in answer["host"] if entry["name"] == name)
    return found


def test_this_host_is_ready(tapwright: Tapwright, nothing_left: None) -> None:
    config = tapwright.configuration(accelerator="tcg", default_memory=512)
    answer = check(tapwright, config)
    assert list(answer) == [
        "ready",
        "host",
        "configuration",
        "unused",
        "warnings",
        "conflicts",
    ]
    for finding in answer["host"]:
        assert list(finding) == ["name", "state", "found", "advice"]
        assert finding["state"] in ("ok", "warning")
    for name in ("root", "QEMU", "guest image", "TAP", "tc", "file share"):
        assert named(answer, name)["state"] == "ok"
    assert "QEMU emulator version" in named(answer, "QEMU")["found"]
    assert "bridge" in named(answer, "plugins")["found"]
    networks = [entry["found"] for entry in answer["host"] if entry["name"] == "network"]
    assert any(re.fullmatch(r"dual \(/\S+/dual.conflist\): bridge, portmap", n) for n in networks)
    setting = {
        "section": "hypervisor.qemu",
        "key": "default_memory",
        "value": 512,
        "source": str(config),
        "state": "in use",
    }
    assert setting in answer["configuration"]
    assert {
        "section": "factory",
        "key": "template_limit",
        "value": 2048,
        "source": "default",
        "state": "in use",
    } in answer["configuration"]
    assert (answer["unused"], answer["warnings"], answer["conflicts"]) == ([], [], [])


def test_kvm_is_judged_as_sandboxes_judge_it(tapwright: Tapwright, machine: Machine) -> None:
    state = named(check(tapwright, tapwright.configuration()), "KVM")["state"]
    assert state == ("ok" if machine.accelerator == "kvm" else "warning")


def test_table(tapwright: Tapwright) -> None:
    config = tapwright.configuration(accelerator="tcg", machine_typ="pc", msize_9p=8192)
    done = tapwright.run("check", config=config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("HOST\nok       root         yes\n")
    assert f"\nCONFIGURATION  {config}\n[hypervisor.qemu]\n" in done.stdout
    assert re.search(r'\n  accelerator +file +"tcg"\n', done.stdout)
    assert re.search(r"\n  default_memory +default +256\n", done.stdout)
    assert re.search(r"\n  template_limit +default +2048\n", done.stdout)
    assert "\nPASSED OVER, FOR KATA ONLY\n[hypervisor.qemu] msize_9p\n" in done.stdout
    assert "\nWARNINGS\n[hypervisor.qemu] machine_typ is not known" in done.stdout
    assert "CONFLICTS" not in done.stdout
    host, _, rest = done.stdout.partition("\nCONFIGURATION")
    wrapped = [line for line in host.splitlines() if " /" not in line] + rest.splitlines()[1:]
    assert max(map(len, wrapped)) <= 100


def test_without_qemu(tapwright: Tapwright) -> None:
    answer = check(tapwright, status=1, env={**os.environ, "PATH": "/nowhere"})
    assert named(answer, "QEMU") == {
        "name": "QEMU",
        "state": "problem",
        "found": "qemu-system-x86_64 is not installed",
        "advice": "set path in [hypervisor.qemu], or run: apt install qemu-system-x86",
    }
    assert named(answer, "firewall")["state"] == "warning"


def test_all_conflicts_are_listed(tapwright: Tapwright, tmp_path: Path) -> None:
    config = tapwright.configuration(accelerator="tcg")
    with config.open("a") as file:
        file.write("[netmon]\nenable_netmon = true\ndisable_new_netns = true\n")
    answer = check(tapwright, config, status=1)
    assert answer["conflicts"] == [
        "config disable_new_netns conflicts with enable_netmon",
        "config disable_new_netns only works with 'none' internetworking_model",
    ]
    done = tapwright.run("check", config=config)
    assert done.stdout.endswith("\nCONFLICTS\n" + "\n".join(answer["conflicts"]) + "\n")
    assert done.stderr == (
        "tapwright: a sandbox can't start here: conflicts in the configuration\n"
    )


def test_a_file_of_kata(tapwright: Tapwright) -> None:
    """It names a QEMU that is not here; all else of it is taken."""
    answer = check(tapwright, KATA_FILE, status=1)
    assert named(answer, "QEMU")["found"] == "/opt/vmm/qemu-system-x86_64 is not installed"
    assert named(answer, "guest image")["state"] == "ok"
    states = {(item["section"], item["key"]): item for item in answer["configuration"]}
    assert states["hypervisor.qemu", "kernel"]["state"] == "passed over"
    assert states["runtime", "internetworking_model"]["value"] == "macvtap"
    assert "[shim.kata] path" in answer["unused"]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"path": "/nowhere/qemu"}, "QEMU"),
        ({"kernel": "/nowhere/vmlinux"}, "guest image"),
        ({"initrd": "/nowhere/initrd"}, "guest image"),
        ({"file_mem_backend": "/nowhere/shm"}, "memory"),
    ],
)
def test_what_is_a_problem_here_is_one_for_a_sandbox(
    tapwright: Tapwright, keys: dict[str, Any], name: str
) -> None:
    config = tapwright.configuration(accelerator="tcg", **keys)
    assert named(check(tapwright, config, status=1), name)["state"] == "problem"
    done = tapwright.run("sandbox", "run", "x", config=config)
    assert done.returncode == 1
    assert "/nowhere/" in done.stderr


def test_a_network_without_its_plugin_keeps_no_sandbox_from_starting(
    tapwright: Tapwright, networks: Networks
) -> None:
    networks.write("lame", [{"type": "bridge"}, {"type": "nowhere"}])
    (networks.directory / "lost.conf").write_text("{")
    try:
        answer = check(tapwright)
    finally:
        for name in ("lame.conflist", "lost.conf"):
            (networks.directory / name).unlink()
    warnings = [entry for entry in answer["host"] if entry["name"] == "network"]
    found = [entry["found"] for entry in warnings if entry["state"] == "warning"]
    # Networks of other tests may be there.
    (lame,) = (words for words in found if words.startswith("lame "))
    assert lame.endswith("bridge, nowhere; missing: nowhere")
    assert any("lost.conf" in words for words in found)


def test_a_broken_configuration(tapwright: Tapwright) -> None:
    config = tapwright.configuration(default_memory="much")
    done = tapwright.run("check", config=config)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{config}: [hypervisor.qemu] default_memory = 'much': must be" in done.stderr


def test_wrong_usage() -> None:
    done = subprocess.run([COMMAND, "check", "--nothing"], capture_output=True, check=False)
    assert done.returncode == 2
