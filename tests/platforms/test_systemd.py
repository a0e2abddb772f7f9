"""systemd as a container's first process: what it says by Tapwright is what it says by runc.

A minute and more, and a root filesystem of packages: so it runs only when it is asked for,
TAPWRIGHT_SYSTEMD=1 scripts/test tests/platforms/test_systemd.py
"""

import os
from pathlib import Path

import pytest

from tapwright.linux import netns
from tests.platforms.confined import RUNTIMES
from tests.platforms.podman import Podman
from tests.programs import root

pytestmark = pytest.mark.skipif(
    not os.environ.get("TAPWRIGHT_SYSTEMD"), reason="TAPWRIGHT_SYSTEMD is not set"
)

_PACKAGES = ("systemd-sysv", "dbus", "procps")
_ONCE = "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
_UNITS = {
    "own-tmp.service": f"{_ONCE}PrivateTmp=yes\nExecStart=/bin/sh -c 'ls /tmp | wc -l'\n",
    "confined.service": f"{_ONCE}ProtectSystem=strict\nProtectHome=yes\nPrivateDevices=yes\n"
    "ProtectKernelTunables=yes\nProtectControlGroups=yes\nPrivateNetwork=yes\n"
    "ExecStart=/bin/sh -c 'touch /usr/x /etc/x; ls /dev/kmsg; ls /sys/class/net'\n",
    "notifies.service": "[Service]\nType=notify\nNotifyAccess=all\n"
    "ExecStart=/bin/sh -c 'systemd-notify --ready; sleep infinity'\n",
    "listens.socket": "[Socket]\nListenStream=/run/listens\n",
    "listens.service": "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n",
    "soon.timer": "[Timer]\nOnActiveSec=1ms\nAccuracySec=1ms\n",
    "soon.service": "[Service]\nExecStart=/bin/sh -c 'echo the timer'\n",
}
_BUS = "/run/dbus/system_bus_socket"
_PROBES = (
    f"until [ -S {_BUS} ]; do sleep 0.2; done; systemctl is-system-running --wait",
    "systemctl --failed --no-legend --plain; cat /proc/1/comm; systemd-detect-virt --container",
    "touch /tmp/mine; systemctl start own-tmp confined notifies listens.socket soon.timer; echo $?",
    "systemctl is-active own-tmp confined notifies listens.socket",
    "until journalctl -o cat -u soon | grep -x 'the timer'; do sleep 0.2; done",
    "journalctl -o cat -u own-tmp -u confined | grep -v -e ^Start -e ^Finish | sort",
    "systemctl stop notifies; systemctl is-active notifies; systemctl show -P Result notifies",
    "systemd-run --quiet --wait --pipe -p User=nobody -p PrivateUsers=yes id -un; echo $?",
    "systemctl list-units --state=running --no-legend --plain | cut -d' ' -f1 | sort",
    "systemctl daemon-reload; systemctl daemon-reexec; systemctl is-system-running --wait",
)


@pytest.mark.timeout(900)
def test_systemd(
    podman: Podman, podman_leaves_nothing: None, machine_netns: str, tmp_path: Path
) -> None:
    with netns.entered(machine_netns):
        files = root.ensure(_PACKAGES)
    # Without that right, systemd leaves most of the confinement out.
    options = ["--cap-add", "SYS_ADMIN", "--systemd=always", "--network", "web"]
    options += ["--memory", "900m"]
    for name, text in _UNITS.items():
        (tmp_path / name).write_text(text)
        options += ["--volume", f"{tmp_path / name}:/etc/systemd/system/{name}:ro"]

    def told(runtime: str) -> list[str]:
        start = "run", "--detach", "--name", "booted", *options, "--rootfs", f"{files}:O"
        podman.output(*start, "/sbin/init", runtime=runtime)
        try:
            found = [podman.run("exec", "booted", "sh", "-c", probe).stdout for probe in _PROBES]
            # By SIGRTMIN+3, which podman takes for an image whose program is systemd.
            podman.output("stop", "--time", "60", "booted")
            found.append(str(podman.inspect("booted")["State"]["ExitCode"]))
            podman.output("start", "booted")
            found += [
                podman.run("exec", "booted", "sh", "-c", probe).stdout for probe in _PROBES[:1]
            ]
            podman.run("exec", "booted", "systemctl", "poweroff")
            found.append(podman.output("wait", "booted"))
        finally:
            podman.run("rm", "--force", "--time", "0", "booted")
        return found

    by_runc, by_us = map(told, RUNTIMES)
    assert by_runc[0] == "running\n"
    assert by_us == by_runc
