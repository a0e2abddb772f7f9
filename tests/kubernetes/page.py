"""What docs/kubernetes.md has people type, and the programs that take the place of theirs."""

import os
import re
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.kubernetes.registry import Registry, executable
from tests.sandboxes import COMMAND

PAGE = Path(__file__).parents[2] / "docs/kubernetes.md"


def blocks(heading: str) -> list[str]:
    """The lines of a part of the page, without what takes Helm."""
    part = PAGE.read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    found = re.findall(r"^( *)```sh\n(.*?)^ *```", part, re.DOTALL | re.MULTILINE)
    texts = [textwrap.dedent(text) for _, text in found]
    return [text for text in texts if not text.startswith("helm ")]


def filled(text: str, words: Mapping[str, str]) -> str:
    """The page's words in capitals, and others, by those of the tests."""
    return re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[1]], text)


def workplace(directory: Path, registry: Registry, wheel: Path) -> dict[str, str]:
    """Lay out a checkout's .venv, and programs before those of the machine: a podman that has the
    registry, and a pip that builds this wheel. The environment that finds them."""
    (directory / ".venv/bin").mkdir(parents=True, exist_ok=True)
    command = directory / ".venv/bin/tapwright"
    command.unlink(missing_ok=True)
    command.symlink_to(COMMAND)
    programs = directory / "programs"
    programs.mkdir(exist_ok=True)
    executable(programs / "podman", f'exec {registry.podman} "$@"')
    deploy = directory / "deploy/kubernetes"
    executable(programs / "pip", f"rm -f {deploy}/tapwright-*.whl", f"cp {wheel} {deploy}")
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


def wheel() -> Path:
    """That of the checkout, which scripts/kubernetes has built while the registry of Python's
    packages could be reached."""
    (found,) = Path(os.environ["WHEELS"]).glob("tapwright-*.whl")
    return found


def later(wheel: Path, directory: Path) -> tuple[Path, str]:
    """The same wheel as another version, and that version, in its metadata alone: the guest image
    has modules, too, and is to have those of its Tapwright."""
    version = wheel.name.split("-")[1]
    new = f"{version}.post1"

    def renamed(text: str) -> str:
        return text.replace(f"tapwright-{version}.", f"tapwright-{new}.")

    written = directory / wheel.name.replace(version, new, 1)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(written, "w") as whole:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                content = renamed(content.decode()).encode()
            if entry.filename.endswith(".dist-info/METADATA"):
                content = content.replace(
                    f"Version: {version}".encode(), f"Version: {new}".encode()
                )
            entry.filename = renamed(entry.filename)
            whole.writestr(entry, content)
    return written, new
