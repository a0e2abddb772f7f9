"""Whether a container's process can execute its program, and what it says when it can't: by runc,
which platforms' exit statuses and people's searches know, and not by crun."""

import errno
import json
import os
import re
import stat
from typing import Any

_SAID = re.compile(r"exec container process(?: \(missing dynamic library\?\))? `(.*)`: (.+)")
_REFUSALS = (errno.ENOEXEC, errno.ENOENT, errno.EACCES, errno.E2BIG, errno.ELOOP, errno.ETXTBSY)
_OF_EXEC = re.compile(
    f"exec: ({'|'.join(os.strerror(number) for number in _REFUSALS)})(\r?\n)".encode()
)
_ANSWER_BYTES = 4096


def refusal(pid: int, process: dict[str, Any]) -> str:
    """Why an OCI `process` can't execute its program among the files of the process `pid`, "" when
    it can: looked for by its user, along its own PATH, as runc does (libcontainer,
    standard_init_linux.go; Go's exec.LookPath). Those whom the lookup of crun's root is right for
    are not looked at. Raises OSError.
    """
    program = str(process["args"][0])
    variables = dict(text.partition("=")[::2] for text in process.get("env", ()))
    places = variables.get("PATH", "").split(":") if "/" not in program else []
    uid = process.get("user", {}).get("uid", 0)
    allowed = process.get("capabilities", {}).get("effective", ())
    is_plain = all(place.startswith("/") for place in places) and ("/" in program or places)
    if is_plain and (not uid or "CAP_DAC_OVERRIDE" in allowed):
        return ""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        # Only a child can give up its root, and its rights.
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


def in_runcs_words(output: bytes, program: str) -> bytes:
    """The first output of a process, which may be what crun says of it; all else stays. Of one that
    `crun exec` made, whose name it leaves out, `program` is the name."""
    if of_exec := _OF_EXEC.fullmatch(output):
        return f"exec {program}: {_lowered(of_exec[1].decode())}".encode() + of_exec[2]
    if not output.startswith(b'{"msg":"exec container process'):
        return output
    line, ending, rest = output.partition(b"\r\n" if b"\r\n" in output else b"\n")
    try:
        said = _SAID.fullmatch(json.loads(line)["msg"])
    except (ValueError, KeyError, TypeError):
        return output
    if not said or rest:
        return output
    return f"exec {said[1]}: {_lowered(said[2])}".encode() + ending


def _looked_up(pid: int, process: dict[str, Any], program: str, places: list[str]) -> str:
    user = process.get("user", {})
    try:
        os.chroot(f"/proc/{pid}/root")
        os.chdir(process["cwd"])
        os.setgroups(user.get("additionalGids", []))
        os.setgid(user.get("gid", 0))
        os.setuid(user.get("uid", 0))
    except OSError:
        return ""  # crun says what is wrong
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
            return f'exec: "{program}": executable file not found in $PATH'
        path = found[0]
        if not path.startswith("/"):
            return f'exec: "{program}": cannot run executable found relative to current directory'
    return "" if os.access(path, os.X_OK) else f"exec {path}: permission denied"


def _fault(path: str) -> str:
    """What keeps a file from being a program at all."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {_lowered(os.strerror(error.errno or 0))}"
    return "permission denied" if stat.S_ISDIR(mode) or not mode & 0o111 else ""


def _lowered(reason: str) -> str:
    """As Go has the texts of the system's errors."""
    return reason[0].lower() + reason[1:]
