"""What becomes of a bundle's configuration in the guest."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.oci import bundle, guest, mounts, statistics, sysctls
from tapwright.oci.log import Log
from tests.oci.bundles import configuration, write

pytestmark = pytest.mark.unit

Json = dict[str, Any]


class Made:
    """The guest's configuration of a bundle, what is shared for it, and the warnings."""

    def __init__(
        self, directory: Path, content: Json, seccomp: Json | None = None, **joined: str
    ) -> None:
        loaded = bundle.load(str(write(directory / "bundle", content)))
        path = directory / "log"
        log = Log(str(path), "json")
        self.shared, bound = mounts.plan(loaded, "c1", log)
        self.config = guest.configuration(loaded, "c1", "/rootfs", bound, joined, seccomp, log)
        log.succeeded()
        lines = path.read_text().splitlines() if path.exists() else []
        self.warnings = [json.loads(line)["msg"] for line in lines]

    def mount(self, destination: str) -> Json:
        (found,) = (m for m in self.config["mounts"] if m["destination"] == destination)
        return dict(found)


def test_namespaces_are_the_guests(tmp_path: Path) -> None:
    made = Made(tmp_path, configuration(), ipc="/proc/7/ns/ipc")
    assert {entry["type"]: entry.get("path") for entry in made.config["linux"]["namespaces"]} == {
        **dict.fromkeys(("pid", "mount", "uts", "cgroup")),
        "ipc": "/proc/7/ns/ipc",
        "network": "/proc/1/ns/net",
    }
    assert made.config["hostname"] == "box"
    assert made.warnings == []


def test_a_joined_host_name_is_left_alone(tmp_path: Path) -> None:
    assert "hostname" not in Made(tmp_path, configuration(), uts="/proc/7/ns/uts").config


@pytest.mark.parametrize("kinds", [("pid", "ipc"), ("pid", "ipc", "uts")])
def test_without_a_host_name_it_is_the_hosts(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    namespaces = [{"type": kind} for kind in kinds]
    content = configuration(linux={"namespaces": namespaces}, hostname="")
    assert Made(tmp_path, content).config["hostname"] == os.uname().nodename


def test_capabilities_that_runc_does_not_know(tmp_path: Path) -> None:
    """It leaves them out, and says so in these words."""
    given = {
        "bounding": ["CAP_CHOWN", "CAP_NO_SUCH", "cap_kill"],
        "effective": ["CAP_CHECKPOINT_RESTORE"],
    }
    made = Made(tmp_path, configuration(process={"capabilities": given}))
    found = made.config["process"]["capabilities"]
    assert found == {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHECKPOINT_RESTORE"]}
    words = "ignoring unknown or unavailable capabilities: [CAP_NO_SUCH cap_kill]"
    assert made.warnings == [words]


def test_files_without_a_size(tmp_path: Path) -> None:
    """As exporters of a host's figures bind them."""
    bound = [
        {"destination": f"/host{source}", "type": "bind", "source": source, "options": ["rbind"]}
        for source in ("/proc", "/sys", "/etc")
    ]
    (told,) = Made(tmp_path, configuration(mounts=bound)).warnings
    assert told == "/host/proc: files of /proc look empty in a VM: they have no size"


def test_host_only_things_are_left_out(tmp_path: Path) -> None:
    made = Made(
        tmp_path,
        configuration(
            hooks={"prestart": [{"path": "/bin/true"}], "startContainer": [{"path": "/bin/id"}]},
            annotations={"run.oci.handler": "krun"},
            process={"apparmorProfile": "x", "selinuxLabel": "y", "oomScoreAdj": -5},
            linux={"cgroupsPath": "/machine", "mountLabel": "z", "seccomp": {}, "intelRdt": {}},
        ),
    )
    assert set(made.config) == {
        *("ociVersion", "root", "process", "mounts", "linux", "hostname", "domainname", "hooks")
    }
    assert made.config["hooks"] == {"startContainer": [{"path": "/bin/id"}]}
    assert set(made.config["linux"]) == {"namespaces", "cgroupsPath", "resources"}
    assert made.config["linux"]["cgroupsPath"] == "/c1"
    assert set(made.config["process"]) == {
        *("args", "env", "cwd", "user", "capabilities", "oomScoreAdj", "rlimits")
    }


def test_seccomp_where_it_is_wanted(tmp_path: Path) -> None:
    given = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    told = {"defaultAction": "SCMP_ACT_ALLOW"}
    content = configuration(linux={"seccomp": given})
    assert Made(tmp_path, content, seccomp=told).config["linux"]["seccomp"] == told
    assert "seccomp" not in Made(tmp_path, content).config["linux"]


def test_bind_mounts_come_through_the_share(tmp_path: Path) -> None:
    (tmp_path / "hosts").touch()
    bound = [
        {"destination": "/etc/hosts", "source": str(tmp_path / "hosts"), "options": ["bind", "ro"]},
        {"destination": "/data", "type": "bind", "source": "../"},
    ]
    made = Made(tmp_path, configuration(mounts=bound))
    assert [(entry.name, entry.source, entry.read_only) for entry in made.shared] == [
        ("rootfs", str(tmp_path / "bundle/rootfs"), False),
        ("mount-4", str(tmp_path / "hosts"), True),
        ("mount-5", str(tmp_path), False),
    ]
    assert made.mount("/etc/hosts") == {
        "destination": "/etc/hosts",
        "type": "bind",
        "source": "/run/tapwright/share/c1/mount-4",
        "options": ["bind", "ro"],
    }
    assert made.mount("/data")["options"] == ["rbind"]


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_that_is_to_follow_no_links(tmp_path: Path, kind: str) -> None:
    options = ["nosymfollow", "ro", "rnosymfollow"]
    wanted = {"destination": "/t", "type": kind, "source": "/", "options": options}
    made = Made(tmp_path, configuration(mounts=[wanted])).mount("/t")
    assert made["links"] == "none below"
    assert {"nosymfollow", "rnosymfollow"}.isdisjoint(made["options"])


@pytest.mark.parametrize(
    ("option", "root", "expected"),
    [
        ("rshared", "rshared", "rshared"),
        ("rslave", "", "rslave"),
        ("rprivate", "", None),
        ("rslave", "private", "private"),
    ],
)
def test_the_propagation_of_mounts(
    tmp_path: Path, option: str, root: str, expected: str | None
) -> None:
    bound = {"destination": "/t", "type": "bind", "source": str(tmp_path), "options": [option]}
    content = configuration(mounts=[bound], linux={"rootfsPropagation": root})
    assert Made(tmp_path, content).config["linux"].get("rootfsPropagation") == expected


def test_kernel_filesystems_are_the_guests(tmp_path: Path) -> None:
    labelled = {"destination": "/t", "type": "tmpfs", "options": ["size=1m", 'context="a:b"']}
    made = Made(tmp_path, configuration(mounts=[labelled]))
    assert made.mount("/t")["options"] == ["size=1m"]
    assert [entry.name for entry in made.shared] == ["rootfs"]


def test_the_networks_sysctls_are_not_the_runtimes(tmp_path: Path) -> None:
    """The rule for dots and slashes is that of sysctl(8)."""
    given = {
        "kernel.msgmax": "1",
        "net.ipv4.ip_forward": "2",
        "fs/mqueue/msg_max": "3",
        "net/ipv4/conf/eth0.100/forwarding": "4",
        "net.ipv4.conf.eth0/100.mc_forwarding": "5",
    }
    content = configuration(linux={"sysctl": given})
    made = Made(tmp_path, content)
    assert made.config["linux"]["sysctl"] == {"kernel.msgmax": "1", "fs.mqueue.msg_max": "3"}
    loaded = bundle.load(str(tmp_path / "bundle"))
    assert sysctls.of_network(loaded) == [
        ("ipv4/ip_forward", "2"),
        ("ipv4/conf/eth0.100/forwarding", "4"),
        ("ipv4/conf/eth0.100/mc_forwarding", "5"),
    ]
    alone = Made(tmp_path, configuration(linux={"sysctl": {"net.ipv4.ip_forward": "1"}}))
    assert "sysctl" not in alone.config["linux"]


def test_limits_that_a_cgroup_can_set(tmp_path: Path) -> None:
    resources = {
        "memory": {"limit": 1 << 26, "kernel": 5, "swappiness": 3, "reservation": None},
        "cpu": {"quota": 5000, "period": 10000, "cpus": "0-1"},
        "pids": {"limit": 9},
        "blockIO": {"weight": 10},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    made = Made(tmp_path, configuration(linux={"resources": resources}))
    assert made.config["linux"]["resources"] == {
        "memory": {"limit": 1 << 26},
        "cpu": {"quota": 5000, "period": 10000},
        "pids": {"limit": 9},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    assert len(made.warnings) == 1


def device(path: str, kind: str, major: int, minor: int, **more: int) -> Json:
    return {"path": path, "type": kind, "major": major, "minor": minor, **more}


def test_devices_that_are_the_guests_own(tmp_path: Path) -> None:
    own = [
        device("/dev/net/tun", "c", 10, 200, fileMode=0o666, uid=1, gid=2),
        device("/dev/other/name", "u", 10, 229),
        device("/dev/ppp", "c", 108, 0),
        device("/dev/kmsg", "c", 1, 11),
        device("/dev/tty3", "c", 4, 3),
        device("/dev/loop0", "b", 7, 0),
        {"path": "/dev/fifo", "type": "p"},
    ]
    hosts = [
        device("/dev/sda", "b", 8, 0),
        device("/dev/vda", "b", 254, 0),
        device("/dev/kvm", "c", 10, 232),
        device("/dev/vsock", "c", 10, 258),
        device("/dev/ppp1", "c", 108, 1),
    ]
    elsewhere = [
        device("/srv/tun", "c", 10, 200, fileMode=0o600),
        device("/dev/bound/tun", "c", 10, 200),
    ]
    made_anyway = [device("/dev/null", "c", 1, 3), device("/dev/console", "c", 5, 1)]
    bound = {"destination": "/dev/bound", "type": "bind", "source": str(tmp_path)}
    content = configuration(
        mounts=[bound], linux={"devices": [*hosts, *made_anyway, *own, *elsewhere]}
    )
    made = Made(tmp_path, content)
    assert made.config["linux"]["devices"] == own
    for node in elsewhere:
        assert made.mount(node["path"])["device"] == node
    (told,) = made.warnings
    assert told.startswith("/dev/sda, /dev/vda, /dev/kvm and 2 more: the host's devices")


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("/sys/fs/cgroup", "ro"),
        ("/sys/fs/cgroup", "rw"),
        # podman's, on a host with version 1 of control groups: one hierarchy.
        ("/sys/fs/cgroup/systemd", "rw"),
        ("/sys/fs/cgroup/systemd/", "ro"),
    ],
)
def test_control_groups_that_are_bound_are_the_guests(
    tmp_path: Path, place: str, option: str
) -> None:
    whole = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "c", "options": ["ro"]}
    bound = {"destination": place, "type": "bind", "source": "/sys/fs/cgroup", "options": [option]}
    made = Made(tmp_path, configuration(mounts=[whole, bound]))
    found = [each for each in made.config["mounts"] if "cgroup" in each["destination"]]
    assert found[-1]["destination"] == "/sys/fs/cgroup"
    assert found[-1]["type"] == "cgroup"
    assert ("ro" in found[-1]["options"]) == (option == "ro")
    assert [each.destination for each in made.shared] == ["/"]
    assert made.warnings == []


def test_control_groups_at_another_place_are_the_hosts(tmp_path: Path) -> None:
    bound = {"type": "bind", "source": "/sys/fs/cgroup", "options": ["ro"]}
    made = Made(tmp_path, configuration(mounts=[{"destination": "/host/cgroup", **bound}]))
    assert [each.destination for each in made.shared] == ["/", "/host/cgroup"]


def test_the_hosts_modules_are_asked_of_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib/modules").mkdir(parents=True)
    (tmp_path / "link").symlink_to("lib/modules")
    monkeypatch.setattr(mounts, "_MODULES", frozenset([f"{tmp_path}/lib/modules"]))
    sources = {"/m": "lib/modules/", "/n": "link", "/b": "lib"}
    bound = [
        {"destination": name, "type": "bind", "source": f"{tmp_path}/{source}"}
        for name, source in sources.items()
    ]
    made = Made(tmp_path, configuration(mounts=bound))
    assert made.mount("/m")["modules"] is True
    assert made.mount("/n")["modules"] is True
    assert "modules" not in made.mount("/b")


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"devices": [{"path": "/dev/kvm", "type": "c"}]}, "/dev/kvm: the host's devices"),
        ({"rootfsPropagation": "rshared"}, "rootfsPropagation: mounts of the container do not"),
        ({"namespaces": [{"type": "network"}, {"type": "ipc"}]}, "without a pid namespace"),
    ],
)
def test_warnings(tmp_path: Path, changes: Json, warning: str) -> None:
    (told,) = Made(tmp_path, configuration(linux=changes)).warnings
    assert told.startswith(warning)


def with_users(mapping: Json, uid: int = 0) -> Json:
    namespaces = [{"type": "user"}]
    linux = {"namespaces": namespaces, "uidMappings": [mapping], "gidMappings": [mapping]}
    return {"linux": linux, "process": {"user": {"uid": uid, "gid": 0}}}


def test_groups_that_may_ping(tmp_path: Path) -> None:
    """Those of a container with groups of its own, as the guest's root has to name them."""
    changes = with_users({"containerID": 0, "hostID": 1000, "size": 9})
    path = "net.ipv4.ping_group_range"
    for given, expected in ((None, "1000\t1008"), ("0 3", "1000\t1003"), ("1\t0", "1001\t1000")):
        changes["linux"]["sysctl"] = {path: given} if given else {}
        loaded = bundle.load(str(write(tmp_path, configuration(**changes))))
        found = sysctls.of_network(loaded)
        assert dict(found)["ipv4/ping_group_range"] == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"linux": {"uidMappings": [{}]}}, "user namespace isn't enabled in the config"),
        ({"linux": {"namespaces": [{"type": "user"}]}}, "but no uid mappings found"),
        (
            {"linux": {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]}},
            "/proc/1/ns/user belongs to no container in this VM; give its mappings",
        ),
        (with_users({"containerID": 1, "hostID": 1, "size": 9}), "but no user mapping found"),
        (
            with_users({"containerID": 0, "hostID": 1, "size": 9}, uid=9),
            "cannot set uid to unmapped user in user namespace",
        ),
        ({"linux": {"resources": {"memory": {"limit": 1 << 20}}}}, "memory limit to 1048576: noth"),
        ({"mounts": [{"destination": "/d", "type": "ext4"}]}, "type 'ext4' can't be made"),
        ({"mounts": [{"destination": "/d", "type": "hugetlbfs"}]}, "the VM has no huge pages"),
        (
            {"mounts": [{"destination": "/d", "type": "bind", "source": "/nowhere"}]},
            "no such file or directory",
        ),
        (
            {"mounts": [{"destination": "/d", "source": "/", "options": ["bind", "idmap"]}]},
            "needs uidMappings and gidMappings, its own or the container's",
        ),
        (
            {"mounts": [{"destination": "/d", "source": "/", "type": "bind", "uidMappings": [{}]}]},
            "has one of uidMappings and gidMappings",
        ),
        (
            {"mounts": [{"destination": "/d", "source": "/", "options": ["bind", "idmap=x"]}]},
            "idmap=x: give the mappings as the mount's",
        ),
        (
            {"mounts": [{"destination": "/d", "type": "tmpfs", "uidMappings": [{}]}]},
            "uidMappings: id-mapped mounts are bind mounts alone",
        ),
        *(
            ({"mounts": [{"destination": place, "source": "/", "type": "bind"}]}, "mounted over")
            for place in ("/", "/./", "//")
        ),
        *(
            ({"linux": {"sysctl": {name: "1"}}}, "is not the name of a setting")
            for name in ("", "net..x", "net/../kernel/msgmax", "/net/ipv4", "net.ipv4.//.x")
        ),
        ({"linux": {"sysctl": {"net.ipv4.ip_forward": 1}}}, "must be a string"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: Json, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        Made(tmp_path, configuration(**changes))


def test_events_in_the_shape_of_runc() -> None:
    numbers = {
        "cpu": {"usage_usec": 5, "user_usec": 3, "system_usec": 2},
        "memory": {"current": 10, "max": None, "peak": 12, "stat": {"file": 4}},
        "pids": {"current": 2, "max": 7},
        "io": {"254:1": {"rbytes": 100, "wios": 3}},
    }
    data = statistics.of_cgroup(numbers)
    assert data["cpu"]["usage"] == {"total": 5000, "user": 3000, "kernel": 2000}
    assert data["memory"]["usage"] == {"limit": 2**64 - 1, "usage": 10, "max": 12, "failcnt": 0}
    assert (data["memory"]["cache"], data["pids"]) == (4, {"current": 2, "limit": 7})
    read = {"major": 254, "minor": 1, "op": "Read", "value": 100}
    assert read in data["blkio"]["ioServiceBytesRecursive"]
    assert statistics.of_cgroup({})["cpu"]["usage"]["total"] == 0
