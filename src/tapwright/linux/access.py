"""Finds out what another user can open, by trying it as that user: modes, access control lists and
security modules all decide, in each directory on the way. Also finds out where others could replace
a file."""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tapwright.linux.files import closing

_UNTRIED = 255
_MOST_LINKS = 40  # include/linux/namei.h: MAXSYMLINKS


def obstacle(path: Path, uid: int, groups: Sequence[int], wanted: int = os.R_OK) -> Path | None:
    """Return what keeps a user from reading a file, or from what else is `wanted` (access(2)): a
    directory on the way that the user can't pass, or the path itself; None if nothing does. Only
    root can call this.

    A missing path is no obstacle. Raises OSError when the check is impossible.
    """
    path = path.absolute()
    steps = [*reversed(path.parents)]
    with contextlib.suppress(OSError, RuntimeError):
        # These include the directories on the way to a link's target.
        steps += [step for step in reversed(path.resolve().parents) if step not in steps]
    steps.append(path)
    modes = [os.X_OK] * (len(steps) - 1) + [wanted]
    number = _first_refused(steps, modes, uid, groups)
    return steps[number - 1] if number else None


def may_read(path: Path, uid: int, groups: Sequence[int]) -> bool:
    """Whether a user may read a file once the user can reach it. Only root can call this. Raises
    OSError."""
    with closing(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        return not _first_refused([Path(f"/proc/self/fd/{fd}")], [os.R_OK], uid, groups)


def _first_refused(
    steps: Sequence[Path], modes: Sequence[int], uid: int, groups: Sequence[int]
) -> int:
    """Return the number of the first step that a user may not take, from 1; 0 if there is none.
    Raises OSError."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(_refused(steps, modes))
        finally:
            os._exit(_UNTRIED)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == _UNTRIED or status < 0:
        raise OSError(f"it can't be tried what user {uid} can open")
    return status


def _refused(steps: Sequence[Path], modes: Sequence[int]) -> int:
    for number, (step, mode) in enumerate(zip(steps, modes, strict=True), 1):
        # A step behind a closed directory does not exist for the user; the closed directory was
        # reported before.
        if os.path.lexists(step) and not os.access(step, mode):
            return number
    return 0


def foothold(path: Path) -> Path | None:
    """Return where users other than root and this one could replace what a path leads to: a
    directory on the way, or a link, which is theirs or which they can write to. None if there is no
    such place, as far as the path exists. In a sticky directory (chmod(2)), others can't remove
    what is not theirs. Raises OSError."""
    own = (0, os.geteuid())
    here, left, links = Path("/"), [*reversed(path.absolute().parts[1:])], 0
    while left:
        name = left.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        try:
            status = step.lstat()
        except FileNotFoundError:
            return None
        if status.st_uid not in own:
            return step
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(os.readlink(step))
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
            continue
        is_sticky = left and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky:
            return step
        here = step
    return None
