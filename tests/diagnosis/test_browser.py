"""The page in a real browser."""

from pathlib import Path

import pytest

from tapwright.diagnosis import live, page
from tests.diagnosis import browser
from tests.diagnosis.test_drawings import evil, host
from tests.diagnosis.test_live import Looking, looking, served

__all__ = ["looking", "served"]  # fixtures


@pytest.fixture(autouse=True)
def there_is_a_browser() -> None:
    browser.program()


def test_it_renders(tmp_path: Path) -> None:
    """No script fails, its text can be read out, and something is to be seen on a phone."""
    path = tmp_path / "page.html"
    path.write_text(page.page([*host(), evil()]))
    shown = browser.document(path.as_uri(), tmp_path / "profile")
    for words in ("4 sandboxes", "bridge br-other", "02:00:00:00:00:a1", "by host-local"):
        assert words in shown
    profile, picture = tmp_path / "profile", tmp_path / "page.png"
    # A page with nothing on it has some kB.
    assert len(browser.screenshot(path.as_uri(), profile, picture, 390, 844)) > 30_000


def test_it_follows(
    served: live.Live, looking: Looking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_AT_LEAST", 0.0)  # the browser's time passes faster than ours
    seen = browser.document(served.address, tmp_path / "profile", milliseconds=5000)
    assert looking.count > 1
    assert "eth1" in seen
    assert '<span id="state" role="status">live</span>' in seen
