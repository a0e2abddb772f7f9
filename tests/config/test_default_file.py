"""The commented default file that ships, and the page about it: they have what the code has."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tapwright import config
from tapwright.config.reading import parse
from tests.sandboxes import COMMAND

pytestmark = pytest.mark.unit

TEXT = Path(config.DEFAULT_FILE).read_text()
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def values(loaded: config.Config) -> dict[tuple[str, str], object]:
    return {(item.section, item.key): item.value for item in loaded.settings()}


@pytest.mark.smoke
def test_as_it_is_it_changes_nothing() -> None:
    loaded = parse([("FILE", TEXT.encode())])
    assert values(loaded) == values(config.Config())
    assert (loaded.given, loaded.unused, loaded.warnings) == ({}, (), ())


def test_it_has_every_key_with_its_default() -> None:
    loaded = parse([("FILE", re.sub(r"(?m)^#(?=\w+ = )", "", TEXT).encode())])
    assert values(loaded) == values(config.Config())
    assert set(loaded.given) == {f"[{item.section}] {item.key}" for item in loaded.settings()}
    assert loaded.warnings == ()


def test_it_has_the_keys_in_the_order_of_the_code() -> None:
    found, section = [], ""
    for line in TEXT.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif match := re.match(r"#(\w+) = ", line):
            found.append((section, match[1]))
    assert found == list(values(config.Config()))


def test_the_page_has_every_key_with_its_default() -> None:
    section, rows = "", {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("### ["):
            section = line.removeprefix("### ")
        elif match := re.match(r"\| (`.*`) \| `(.*?)` \|", line):
            for key in re.findall(r"`(.*?)`", match[1]):
                rows[key if key.startswith("[") else f"{section} {key}"] = json.loads(match[2])
    assert rows == {
        f"[{section}] {key}": list(value) if isinstance(value, tuple) else value
        for (section, key), value in values(config.Config()).items()
    }


def test_the_command_prints_it() -> None:
    done = subprocess.run([COMMAND, "check", "--print-default"], capture_output=True, check=True)
    assert done.stdout.decode() == TEXT
