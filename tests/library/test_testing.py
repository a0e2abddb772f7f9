"""The fixtures for pytest, by the example in docs/testing.md."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.host import Host
from tests.sandboxes import Tapwright

pytest_plugins = ("pytester",)

PAGE = Path(__file__).parents[2] / "docs/testing.md"


@pytest.mark.smoke
def test_the_example(
    pytester: pytest.Pytester, tapwright: Tapwright, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPWRIGHT_CONFIG", str(tapwright.config))
    (piece,) = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text())
    # The bridge stays, as the plugin has it; the leases are where the plugin keeps them.
    before = host.snapshot()
    try:
        pytester.makepyfile(piece)
        pytester.runpytest_subprocess().assert_outcomes(passed=2)
    finally:
        subprocess.run(["ip", "link", "delete", "tested0"], check=False, capture_output=True)
    host.assert_same(before)


def test_what_a_test_that_fails_leaves(
    pytester: pytest.Pytester, tapwright: Tapwright, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPWRIGHT_CONFIG", str(tapwright.config))
    before = host.snapshot()
    pytester.makepyfile(
        """
        import pytest
        from tapwright.cni import PluginError

        def test_it(tapwright_network, tapwright_netns, tapwright_sandbox):
            loopback = {"cniVersion": "1.0.0", "name": "x", "type": "loopback"}
            tapwright_network(loopback, "lo")
            box = tapwright_sandbox(networks=[])
            assert box.status == "dead"
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(failed=1)
    assert [name for name in os.listdir("/run/netns") if "tapwright-test" in name] == []
    host.assert_same(before)


def test_where_plugins_are(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntapwright_plugin_dirs = elsewhere\n")
    pytester.makepyfile(
        """
        import pytest
        from tapwright.cni import PluginError

        def test_it(tapwright_network):
            with pytest.raises(PluginError, match="elsewhere"):
                tapwright_network({"cniVersion": "1.0.0", "name": "x", "type": "loopback"}, "lo")
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
