"""openEuler's guide: each command of our page about it is in the script, and the script runs."""

import os
import re
import subprocess
from pathlib import Path

from tests.sandboxes import Tapwright

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "openeuler"
PAGE = ROOT / "docs" / "openeuler.md"


def test_the_script_has_the_commands_of_the_page() -> None:
    script = SCRIPT.read_text()
    commands = re.findall(r"^(?:cat |kata-runtime ).*$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 20
    assert [command for command in commands if command not in script] == []


def test_the_script_runs(tapwright: Tapwright) -> None:
    """With the templates of other tests, and no other setting that differs from the default."""
    environment = {**os.environ, "TAPWRIGHT_CONFIG": str(tapwright.config)}
    done = subprocess.run(
        [SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert done.stdout.endswith("\n# Done.\n")
