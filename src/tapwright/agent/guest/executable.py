"""Finds out whether a container's process can execute its program, and words the error as runc
does: platforms' exit statuses and people's searches know runc's words, and not crun's."""

import errno
import os
import re
import stat
from typing import Any

from tapwright.agent.guest import crun
from tapwright.linux import libc

_SAID = re.compile(r"exec container process(?: \(missing dynamic library\?\))? `(.*)`: (.+)")
_REFUSALS = (errno.ENOEXEC, errno.ENOENT, errno.EACCES, errno.E2BIG, errno.ELOOP, errno.ETXTBSY)
_OF_EXEC = re.compile(
    f"exec(?: `[^`]*`)?: ({'|'.join(os.strerror(number) for number in _REFUSALS)})(\r?\n)".encode()
)
_ENTRY = re.compile(rb'\{\s*"msg":\s*"exec container process')
_ENTRY_BYTES = 16 * 1024  # of a path, each of whose characters may be written as several
_OF_CWD = re.compile(r"chdir `(.*)`: (.+)")
_OF_PROGRAM = re.compile(
    r"(?:open executable|(?:executable file|the path|open) `(?P<path>[^`]*)`[^`]*)"
    r": (?P<reason>[^:]+)$"
)
_UNFIT = "Operation not permitted"  # what crun says of a directory, and newer ones of a plain file
_UNREACHABLE = (
    "No such file or directory",
    "Not a directory",
    "Too many levels of symbolic links",
)
_ANSWER_BYTES = 4096
_RIGHTS = {"CAP_DAC_OVERRIDE": 1 << 1, "CAP_DAC_READ_SEARCH": 1 << 2}
"""Those that have to do with finding a program (include/uapi/linux/capability.h)."""


def refusal(pid: int, process: dict[str, Any]) -> str:
    """Return why an OCI `process` can't execute its program among the files of the process `pid`,
    or "". The program is looked up as the process's user, with the process's rights, along its
    own PATH, as runc does (libcontainer, standard_init_linux.go; Go's exec.LookPath). Processes for
    which the lookup of crun's root is right are not checked. Raises OSError."""
    program = str(process["args"][0])
    variables = dict(text.partition("=")[::2] for text in process.get("env", ()))
    places = variables.get("PATH", "").split(":") if "/" not in program else []
    is_plain = all(place.startswith("/") for place in places) and ("/" in program or places)
    if is_plain and "CAP_DAC_OVERRIDE" in _effective(process):
        return ""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        # The check changes its root and drops its rights, which only a child can do.
        if not os.fork():
            try:
                os.write(write, _looked_up(pid, process, program, places).encode()[:_ANSWER_BYTES])
            finally:
                os._exit(0)
        os.close(write)
        write = -1
        return os.read(read, _ANSWER_BYTES).decode(errors="replace")
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def _effective(process: dict[str, Any]) -> list[str]:
    found: list[str] = process.get("capabilities", {}).get("effective", [])
    return found


def refused_in_runcs_words(refusal: str, program: str) -> str:
    """Reword crun's reason for not making the process of a `program`; other reasons stay. docker
    derives its exit status from runc's words (daemon/start_unix.go and errors.go, of moby 20.10).
    crun before 1.9 looks for a program in src/libcrun/container.c, later ones do in
    src/libcrun/utils.c: find_executable."""
    if said := _OF_CWD.fullmatch(refusal):
        return f'chdir to cwd ("{said[1]}") set in config.json failed: {_lowered(said[2])}'
    found = _OF_PROGRAM.search(refusal)
    if not found or (found["path"] and not found["path"].endswith(program)):
        return refusal
    reason = found["reason"]
    if "/" not in program and reason in ("No such file or directory", _UNFIT):
        return _not_found(program)
    if reason in (_UNFIT, "Permission denied"):
        return f'exec: "{program}": permission denied'
    if reason in _UNREACHABLE:
        return f'exec: "{program}": stat {program}: {_lowered(reason)}'
    return refusal


def is_a_part(output: bytes) -> bool:
    """Whether the first output of a process is the beginning of crun's entry, a line, or several
    since 1.28. It comes in pieces: it has no buffer, and the C library writes 128 bytes at once
    then (glibc 2.37, stdio-common/vfprintf-internal.c)."""
    if not _ENTRY.match(output) or len(output) >= _ENTRY_BYTES:
        return False
    text = output.decode(errors="replace")
    entry = crun.entry(text)
    return entry is None or "\n" not in text[entry[1] :]


def in_runcs_words(output: bytes, program: str) -> bytes:
    """Reword the first output of a process if it is crun's error; other output stays. `program` is
    the program of a process that `crun exec` made, because crun before 1.28 leaves that name
    out."""
    if of_exec := _OF_EXEC.fullmatch(output):
        return f"exec {program}: {_lowered(of_exec[1].decode())}".encode() + of_exec[2]
    text = output.decode(errors="replace")
    entry = crun.entry(text) if _ENTRY.match(output) else None
    if entry is None:
        return output
    message, end = entry
    said, rest = _SAID.fullmatch(message), text[end:]
    if not said or rest not in ("\n", "\r\n"):
        return output
    return f"exec {said[1]}: {_lowered(said[2])}{rest}".encode()


def _looked_up(pid: int, process: dict[str, Any], program: str, places: list[str]) -> str:
    user = process.get("user", {})
    try:
        with open(f"/proc/{pid}/ns/user") as users:
            has_own = not os.path.samestat(os.fstat(users.fileno()), os.stat("/proc/self/ns/user"))
            os.chroot(f"/proc/{pid}/root")
            if has_own:
                libc.setns(users.fileno(), libc.CLONE_NEWUSER)
        os.chdir(process["cwd"])
        os.setgroups(user.get("additionalGids", []))
        os.setgid(user.get("gid", 0))
        os.setuid(user.get("uid", 0))
        libc.keep_rights(sum(_RIGHTS.get(name, 0) for name in _effective(process)))
    except OSError:
        return ""  # crun reports what is wrong
    if "/" in program:
        reason = _fault(program)
        if reason:
            return f'exec: "{program}": {reason}'
        path = program
    else:
        found = [
            each for each in (os.path.join(p or ".", program) for p in places) if not _fault(each)
        ]
        if not program or not found:
            return _not_found(program)
        path = found[0]
        if not path.startswith("/"):
            return f'exec: "{program}": cannot run executable found relative to current directory'
    return "" if os.access(path, os.X_OK) else f'exec: "{program}": permission denied'


def _not_found(program: str) -> str:
    return f'exec: "{program}": executable file not found in $PATH'


def _fault(path: str) -> str:
    """Return what keeps a file from being a program, or ""."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {_lowered(os.strerror(error.errno or 0))}"
    return "permission denied" if stat.S_ISDIR(mode) or not mode & 0o111 else ""


def _lowered(reason: str) -> str:
    """Return the text of a system error as Go writes it."""
    return reason[0].lower() + reason[1:]
