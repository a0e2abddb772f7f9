"""What shows how a platform has confined a container, and what uses up its memory."""

import json
import subprocess
from pathlib import Path

# By a profile that denies what it does not name, `unshare` without CAP_SYS_ADMIN.
FILTERED = "grep Seccomp: /proc/self/status; unshare -U true; echo $?"
PROBE = f"{FILTERED}; ls /sys/firmware; echo >/proc/sys/kernel/domainname"
GROW = "x=1234567890123456; while :; do x=$x$x; done"
CHILD_GROWS = f"sh -c '{GROW}'; echo $?; exit 3"
MEMORY = 32 << 20
RUNTIMES = ("runc", "tapwright")
DENIED = "ot supported"  # EOPNOTSUPP


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    # A test before may have killed a guest as it started: its template is made again.
    told = [one for one in done.stderr.splitlines(True) if "make the template" not in one]
    return done.returncode, f"{done.stdout}{''.join(told)}"


def without_mkdir(directory: Path) -> Path:
    """A profile that denies a call that no default profile does."""
    path = directory / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    return path
