"""What containers keep in files, and what an agent that died has left of them."""

import contextlib
import os
import signal

# A directory of each container; pid files and sockets of processes that are being started.
DIRECTORY = "/run/tapwright/containers"
LAUNCHES = "/run/tapwright/launches"


def clear() -> None:
    """End all that an agent that died has left: nobody will hear of the end of its containers, or
    of its commands, for they are no children of this one.

    To be called in a guest only: it kills every process but init and this one. A guest that never
    had a container has nothing to clear.
    """
    if not os.path.exists(DIRECTORY):
        return
    import subprocess

    from tapwright.agent.guest import cgroups, crun, files, memory

    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    for name in os.listdir(DIRECTORY):
        words = [crun.PROGRAM, "delete", "--force", name]
        subprocess.run(words, stdin=subprocess.DEVNULL, check=False)
        with contextlib.suppress(OSError):
            cgroups.remove(cgroups.of_container(name))
        files.remove(f"{DIRECTORY}/{name}")
    files.remove(LAUNCHES)
    memory.clear()
