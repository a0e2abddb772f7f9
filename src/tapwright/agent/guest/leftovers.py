"""The directory of containers' files, and the cleaning up after an agent that died."""

import contextlib
import os
import signal

# It has a directory for each container, and the pid files and sockets of processes that are being
# started.
DIRECTORY = "/run/tapwright/containers"
LAUNCHES = "/run/tapwright/launches"


def clear() -> None:
    """End all processes that an agent which died has left. They are no children of this agent, so
    it could never report their end.

    Call this in a guest only: it kills every process but init and the agent. A guest that never had
    a container has nothing to clear.
    """
    if not os.path.exists(DIRECTORY):
        return
    import subprocess

    from tapwright.agent.guest import cgroups, crun, files, memory, propagation

    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    for name in os.listdir(DIRECTORY):
        words = [crun.PROGRAM, "delete", "--force", name]
        subprocess.run(words, stdin=subprocess.DEVNULL, check=False)
        with contextlib.suppress(OSError):
            cgroups.remove(cgroups.of_container(name))
        files.remove(f"{DIRECTORY}/{name}")
    files.remove(LAUNCHES)
    propagation.clear()
    memory.clear()
