import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import libc
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright

_PR_SET_CHILD_SUBREAPER = 36


Run = Callable[..., str]
"""Runs a container of a command and changes to its configuration, whose root filesystem is
`prepare`d; returns its status and what it printed."""


@pytest.fixture
def by_runc(runtime: Runtime, tmp_path: Path) -> Run:
    def run(*argv: str, prepare: Callable[[Path], object] = lambda _: None, **changes: Any) -> str:
        bundle = runtime.bundle(configuration(*argv, **changes))
        prepare(bundle / "rootfs")
        name = f"twtest-{os.urandom(4).hex()}"
        words = ["runc", "--root", str(tmp_path / "runc"), "run", "--bundle", str(bundle), name]
        done = subprocess.run(words, capture_output=True, text=True, input="", check=False)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    return run


@pytest.fixture
def by_us(runtime: Runtime) -> Run:
    def run(*argv: str, prepare: Callable[[Path], object] = lambda _: None, **changes: Any) -> str:
        bundle = runtime.bundle(configuration(*argv, **changes))
        prepare(bundle / "rootfs")
        done = runtime.call("run", "--bundle", str(bundle), runtime.fresh_id(), input="")
        return f"{done.returncode} {done.stdout}{done.stderr}"

    return run


Exec = Callable[..., tuple[list[str], list[str]]]
"""Runs further processes in a container of runc's, and in one of ours of the same configuration;
returns what came of each by runc, and of each by us. The first argument is the lines of words
behind `exec`, in which `{}` is the container's id; the others are those of `Run`."""


@pytest.fixture
def exec_by_both(runtime: Runtime, tmp_path: Path) -> Exec:
    def run(
        calls: Iterable[Sequence[str]],
        prepare: Callable[[Path], object] = lambda _: None,
        **changes: Any,
    ) -> tuple[list[str], list[str]]:
        def all_of(command: list[str], name: str) -> list[str]:
            found = []
            for call in calls:
                words = [*command, "exec", *(word.replace("{}", name) for word in call)]
                done = subprocess.run(words, capture_output=True, text=True, input="", check=False)
                found.append(f"{done.returncode} {done.stdout}{done.stderr}")
            return found

        content = configuration("sleep", "1000", **changes)
        bundle = runtime.bundle(content)
        prepare(bundle / "rootfs")
        runc, name = ["runc", "--root", str(tmp_path / "runc")], f"twtest-{os.urandom(4).hex()}"
        pid_file = bundle / "pid"
        words = [*runc, "run", "--detach", "--pid-file", str(pid_file), "--bundle", str(bundle)]
        null = subprocess.DEVNULL
        subprocess.run([*words, name], stdin=null, stdout=null, stderr=null, check=True)
        try:
            by_runc = all_of(runc, name)
        finally:
            subprocess.run([*runc, "delete", "--force", name], check=True)
            os.waitpid(int(pid_file.read_text()), 0)  # this process is a subreaper
        with runtime.created(content) as container:
            prepare(container.bundle / "rootfs")
            container.start()
            return by_runc, all_of(runtime.tapwright.command(), container.id)

    return run


# Not of the session: platforms count on their orphans being waited for, as init does.
@pytest.fixture(scope="package")
def runtime(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    yield Runtime(tapwright, tmp_path_factory.mktemp("oci"))
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture(scope="module")
def modules_of_the_host() -> Iterator[None]:
    """A host without a kernel of its own has no directory of modules."""
    path = Path("/lib/modules")
    is_new = not path.exists()
    path.mkdir(exist_ok=True)
    yield
    if is_new:
        with suppress(OSError):
            path.rmdir()
