"""openEuler's guide: each command of our page about it is in the script, and the script runs."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "openeuler"
PAGE = ROOT / "docs" / "openeuler.md"


def test_the_script_has_the_commands_of_the_page() -> None:
    script = SCRIPT.read_text()
    commands = re.findall(r"^(?:cat |kata-runtime ).*$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) == 20
    assert [command for command in commands if command not in script] == []


def test_the_script_runs() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert done.stdout.endswith("\n# Done.\n")
