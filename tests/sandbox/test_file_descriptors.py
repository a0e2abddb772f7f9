"""More files than the share's daemon may have descriptors."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.state import registry
from tests.host import eventually
from tests.sandboxes import Tapwright, show

SANDBOX = "descriptors"
FEW, FILES = 1000, 3000

RUN = f"""
import resource, sys
from pathlib import Path
from tapwright.config import load
from tapwright.linux import capabilities
from tapwright.sandbox import lifecycle, planning
config, root, name = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW}))
capabilities.keep(set(range(capabilities.last() + 1)) - {{24}}, capabilities.last())  # SYS_RESOURCE
lifecycle.run(Path(root), name, planning.plan(load(config), planning.Wish(share=True), print))
"""

OPEN_ALL = """
import os
held = []
try:
    for number in range(10_000):
        held.append(os.open(f"{number % FILES}", os.O_RDONLY))
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def directory(tapwright: Tapwright, tmp_path: Path) -> Iterator[str]:
    """A directory with many files, in a guest whose daemon has few descriptors. A daemon has the
    limit of the process that runs the sandbox, if that may not have more."""
    words = [sys.executable, "-c", RUN, str(tapwright.config), str(tapwright.root), SANDBOX]
    subprocess.run(words, check=True)
    sandbox = registry.find(tapwright.root, SANDBOX)
    for number in range(FILES):
        (tmp_path / str(number)).write_text("x")
    yield show(sandbox, "test", tmp_path)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


def test_all_can_be_read_one_after_the_other(
    tapwright: Tapwright, directory: str, nothing_left: None
) -> None:
    """Not always at the first try: the supervisor makes the guest forget when half are in use."""
    script = f"cat {directory}/* | wc -c"
    assert eventually(
        lambda: tapwright.exec(SANDBOX, "sh", "-c", f"{{ {script}; }} 2>/dev/null") == f"{FILES}\n"
    )


def test_a_program_that_opens_too_many_gets_an_error_alone(
    tapwright: Tapwright, directory: str, nothing_left: None
) -> None:
    program = f"FILES = {FILES}\n{OPEN_ALL}"
    script = f"cd {directory}; ulimit -n 20000; python3 -c '{program}'"
    # By virtiofsd in Rust it is the limit of the system.
    errors = ("Too many open files\n", "Too many open files in system\n")
    assert tapwright.exec(SANDBOX, "sh", "-c", script) in errors

    def can_read() -> bool:
        words = tapwright.command("sandbox", "exec", SANDBOX, "--", "cat", f"{directory}/2999")
        return subprocess.run(words, capture_output=True, check=False).stdout == b"x"

    assert eventually(can_read)
