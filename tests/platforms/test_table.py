"""The table of docs/platforms.md, without the runs that it is of."""

import pytest

from tests.platforms.table import DOCS, HEAD, merged

pytestmark = pytest.mark.unit
RULE = "| --- | --- | --- | --- | --- |"


def test_a_row_takes_the_place_of_the_same_platform_version_and_release() -> None:
    kept, old, new = (
        f"| podman | {version} | Debian 13 | {day} | 1 passed |"
        for version, day in (("4.3", "2026-01-01"), ("5.4", "2026-01-01"), ("5.4", "2026-01-02"))
    )
    page = f"words\n{HEAD}\n{RULE}\n{kept}\n{old}\n\nmore\n"
    assert merged(page, [new]) == page.replace(old, new)


def test_the_page_has_it() -> None:
    assert merged(DOCS.read_text(), []) == DOCS.read_text()
