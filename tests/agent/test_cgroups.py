"""The numbers of a control group, as kernels write them."""

from pathlib import Path

import pytest

from tapwright.agent.guest import cgroups

pytestmark = pytest.mark.unit


def test_numbers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """io.cost adds a fraction to a line of io.stat, and a device without numbers is there, too."""
    monkeypatch.setattr(cgroups, "_ROOT", str(tmp_path))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "io.stat").write_text("8:0 rbytes=5 cost.vrate=99.50 odd\n8:16\n")
    (tmp_path / "c" / "cpu.stat").write_text("usage_usec 7\nodd\nodder x\n")
    (tmp_path / "c" / "memory.max").write_text("max\n")
    found = cgroups.statistics("/c")
    assert found["io"] == {"8:0": {"rbytes": 5}, "8:16": {}}
    assert found["cpu"] == {"usage_usec": 7}
    assert found["memory"]["max"] is None
