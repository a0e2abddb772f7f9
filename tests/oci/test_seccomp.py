"""Seccomp profiles: the same answers of system calls as by runc."""

import base64
import errno
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.oci import bundle, reports, seccomp
from tests.oci.bundles import Json, configuration, write
from tests.oci.runtime import Runtime

X86_64, I386 = 0xC000003E, 0x40000003
X32_BIT = 0x40000000
ALLOW, ERRNO, KILL_PROCESS, TRACE = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FF00000
NUMBERS = {
    "getppid": 110,
    "getpgrp": 111,
    "personality": 135,
    "mount": 165,
    "umask": 95,
    "dup3": 292,
    "keyctl": 250,
    "unshare": 272,
    "no_such_call": 999,
}
PROBE = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
for name, *call in {calls}:
    failed = libc.syscall(*map(ctypes.c_long, call)) == -1
    print(name, *call[1:], errno.errorcode[ctypes.get_errno()] if failed else "done")
for line in open("/proc/self/status"):
    if line.startswith(("Seccomp", "NoNewPrivs")):
        print(line.split())
with open("/proc/interrupts") as file:
    print(len(file.read()))
print(os.listdir("/proc/irq"), os.listdir("/sys/firmware"))
try:
    open("/proc/sys/kernel/domainname", "r+").close()
except OSError as error:
    print(errno.errorcode[error.errno])
"""
READ_ONLY = [
    {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
    for path in ("/usr", "/lib", "/lib64")
]


def denied(*names: str, **more: Any) -> Json:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", **more}


def allowed(*names: str, **more: Any) -> Json:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


def when(*conditions: tuple[int, str, int, int]) -> list[Json]:
    return [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}
        for index, op, value, second in conditions
    ]


def answer(profile: Json, number: int, *arguments: int, arch: int = X86_64) -> int:
    """The verdict of a profile's program on a call. The test reads the program here, because a call
    that it denies may be one that reading needs."""
    code = list(struct.iter_unpack("=HBBI", seccomp.Profile(profile).program()))
    given = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("=IIQ6Q", number, arch, 0, *given)
    accumulator = place = 0
    while True:
        kind, if_so, otherwise, value = code[place]
        place += 1
        if kind == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("=I", call, value)
        elif kind == 0x54:  # and
            accumulator &= value
        elif kind == 0x05:  # jump
            place += value
        elif kind == 0x06:  # return
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[kind]
            place += if_so if holds else otherwise


@pytest.mark.unit
def test_what_is_not_allowed_fails() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EACCES,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            allowed("getppid", "dup3", "of_tomorrow"),
            allowed("personality", args=when((0, "EQ", 8, 0))),
            denied("umask", errnoRet=errno.ENOTSUP),
        ],
    }
    assert answer(profile, NUMBERS["getppid"]) == ALLOW
    assert answer(profile, 64, arch=I386) == ALLOW  # getppid
    assert answer(profile, NUMBERS["getpgrp"]) == ERRNO | errno.EACCES
    assert answer(profile, NUMBERS["umask"]) == ERRNO | errno.ENOTSUP
    assert answer(profile, NUMBERS["personality"], 8) == ALLOW
    assert answer(profile, NUMBERS["personality"], 9) == ERRNO | errno.EACCES
    # What is newer than all that the profile knows is as it is on a kernel that lacks it.
    assert answer(profile, NUMBERS["dup3"] + 1) == ERRNO | errno.ENOSYS
    assert answer(profile, 331, arch=I386) == ERRNO | errno.ENOSYS  # pipe2
    assert answer(profile, 329, arch=I386) == ERRNO | errno.EACCES  # epoll_create1
    assert answer(profile, NUMBERS["getppid"] | X32_BIT) not in (ALLOW, ERRNO | errno.ENOSYS)
    assert answer(profile, 0, arch=0x1234) == 0  # its thread is killed


@pytest.mark.unit
def test_x32_where_it_is_asked_for() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        "syscalls": [allowed("getppid", "dup3")],
    }
    assert answer(profile, NUMBERS["getppid"] | X32_BIT) == ALLOW
    assert answer(profile, NUMBERS["getpgrp"] | X32_BIT) == ERRNO | errno.EPERM
    assert answer(profile, NUMBERS["dup3"] + 1 | X32_BIT) == ERRNO | errno.ENOSYS
    assert answer(profile, NUMBERS["dup3"] + 1) == ERRNO | errno.ENOSYS


@pytest.mark.unit
def test_conditions() -> None:
    both = when((0, "MASKED_EQ", 0xFF00, 0x1200), (1, "GT", 7, 0))
    either = when((0, "EQ", 1, 0), (0, "EQ", 1 << 40, 0))
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            denied("mount", args=both),
            denied("keyctl", args=either),
            {"names": ["unshare"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["umask"], "action": "SCMP_ACT_TRACE", "errnoRet": 5},
        ],
    }
    refused = ERRNO | errno.EPERM
    assert answer(profile, NUMBERS["mount"], 0x1234, 8) == refused
    assert answer(profile, NUMBERS["mount"], 0x1234, 7) == ALLOW
    assert answer(profile, NUMBERS["mount"], 0x1334, 8) == ALLOW
    assert [answer(profile, NUMBERS["keyctl"], n) for n in (1, 1 << 40, 2)] == [
        *(refused, refused, ALLOW)
    ]
    assert answer(profile, NUMBERS["unshare"]) == KILL_PROCESS
    assert answer(profile, NUMBERS["umask"]) == TRACE | 5
    assert answer(profile, NUMBERS["no_such_call"]) == ALLOW


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"listenerPath": "/run/listener"}, "linux.seccomp.listenerPath: its listener"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: SCMP_ACT_NOTIFY: a process of"),
        ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW' is none of SCMP_ACT_ALLOW, "),
        ({"defaultAction": None}, "defaultAction: None is none of"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}, "defaultErrnoRet must be a"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW"]}, "flags: 'SECCOMP_FILTER_FLAG_NEW' is none of"),
        ({"flags": "all"}, "flags must be a list of strings"),
        ({"architectures": ["SCMP_ARCH_PDP11"]}, "architectures: 'SCMP_ARCH_PDP11' is none of"),
        ({"syscalls": [{"names": 7, "action": "SCMP_ACT_LOG"}]}, "names must be a list of strings"),
        ({"syscalls": ["mount"]}, "syscalls must be a list of objects"),
        ({"syscalls": [denied("mount", args=when((6, "EQ", 0, 0)))]}, "index: 6 is none of 0, 1"),
        ({"syscalls": [denied("mount", args=when((0, "IS", 0, 0)))]}, "op: 'SCMP_CMP_IS' is none"),
    ],
)
def test_what_can_not_be_had(changes: Json, reason: str, tmp_path: Path) -> None:
    given = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied("mount")], **changes}
    content = configuration(linux={"seccomp": given})
    loaded = bundle.load(str(write(tmp_path / "bundle", content)))
    with pytest.raises(BundleError, match=reason):
        made(loaded)


def made(loaded: bundle.Bundle) -> dict[str, str]:
    profile = seccomp.of_bundle(loaded)
    return seccomp.Making(profile).annotation() if profile else {}


@pytest.mark.unit
def test_what_the_guest_is_given(tmp_path: Path) -> None:
    flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    given = {"defaultAction": "SCMP_ACT_LOG", "flags": flags, "syscalls": [denied("mount")]}
    profile = seccomp.Profile(given)
    assert profile.of_runtime == {"defaultAction": "SCMP_ACT_LOG", "flags": flags}
    ((key, value),) = seccomp.Making(profile).annotation().items()
    assert key == "run.oci.seccomp_bpf_data"
    assert base64.b64decode(value) == profile.program()
    asks_nothing = configuration(linux={"seccomp": {}})
    assert made(bundle.load(str(write(tmp_path, asks_nothing)))) == {}
    assert reports.features()["linux"]["seccomp"]["enabled"]


def probing(**linux: Any) -> Json:
    calls = [
        *(("getppid", 110), ("getpgrp", 111), ("umask", 95, 0o22), ("keyctl", 250, 0, 0, 0)),
        *(("personality", 135, 0xFFFFFFFF), ("personality", 135, 8), ("unshare", 272, 0x20000)),
        *(("mount", 165, 0, 0, 0, 0, 0), ("no_such_call", 999), ("getppid by x32", X32_BIT | 110)),
    ]
    hidden = {
        "maskedPaths": ["/proc/interrupts", "/proc/irq", "/sys/firmware", "/proc/nothing"],
        "readonlyPaths": ["/proc/sys", "/proc/nothing"],
    }
    script = f"python3 -c '{PROBE.format(calls=json.dumps(calls))}'; echo over; sleep 1000"
    return configuration("sh", "-c", script, mounts=READ_ONLY, linux={**hidden, **linux})


PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
    "syscalls": [
        denied("mount", "umount2", "of_tomorrow"),
        denied("getpgrp", errnoRet=errno.ENOTSUP),
        denied("unshare", args=when((0, "MASKED_EQ", 0x20000, 0x20000))),
        denied("personality", args=when((0, "NE", 0xFFFFFFFF, 0))),
        {"names": ["keyctl"], "action": "SCMP_ACT_LOG"},
    ],
}


def by_runc(directory: Path, content: Json) -> str:
    """What it prints until it is over. runc knows flags from version 1.2 on."""
    profile = {key: value for key, value in PROFILE.items() if key != "flags"}
    content = {**content, "linux": {**content["linux"], "seccomp": profile}}
    (directory / "config.json").write_text(json.dumps(content))
    words = ["runc", "--root", str(directory / "runc")]
    name = f"twtest-{directory.name}"
    command = [*words, "run", "--bundle", str(directory), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        said = []
        while (line := process.stdout.readline()) not in (b"over\n", b""):
            said.append(line)
        subprocess.run([*words, "kill", name, "KILL"], check=False)
    return b"".join(said).decode()


@pytest.mark.usefixtures("nothing_left")
def test_the_same_as_by_runc(runtime: Runtime) -> None:
    """Of the container's program, of what is run in it, and masked and read-only paths."""
    content = probing(seccomp=PROFILE)
    expected = by_runc(runtime.bundle(content), content)
    assert "mount 0 0 0 0 0 EPERM" in expected
    assert "getpgrp ENOTSUP" in expected
    assert "['Seccomp:', '2']" in expected
    with runtime.created(content) as container:
        container.start()
        assert container.prints("over\n")
        assert container.output() == f"{expected}over\n"
        program = content["process"]["args"][2].removesuffix("; echo over; sleep 1000")
        assert container.says("sh", "-c", program) == expected


@pytest.mark.usefixtures("nothing_left")
def test_switched_off_in_a_file(runtime: Runtime) -> None:
    runtime.config = runtime.tapwright.configuration(
        {"disable_guest_seccomp": True}, template=runtime.tapwright.templates
    )
    try:
        status = "grep", "Seccomp:", "/proc/self/status"
        linux = {"seccomp": {**PROFILE, "syscalls": [denied("getdents64")]}}
        assert runtime.run(*status, linux=linux) == (0, "Seccomp:\t0\n")
    finally:
        runtime.config = None
