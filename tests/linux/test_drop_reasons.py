"""The kernel's word on why it drops packets."""

import subprocess

import pytest

from tapwright.linux.drop_reasons import DropReasons

_DROPS = (
    "ip link set lo up; nft 'add table ip f; "
    "add chain ip f i { type filter hook input priority 0; policy drop; }'; "
    "ping -c 2 -i 0.1 -W 0.3 127.0.0.1; true"
)


def test_a_packet_rule_is_a_reason() -> None:
    try:
        reasons = DropReasons(4)
    except OSError as error:
        pytest.skip(f"the kernel can't tell: {error}")
    with reasons:
        subprocess.run(["unshare", "-n", "sh", "-c", _DROPS], check=True, capture_output=True)
        assert reasons.counted().get("NETFILTER_DROP", 0) >= 2
    with DropReasons(6) as others:
        subprocess.run(["unshare", "-n", "sh", "-c", _DROPS], check=True, capture_output=True)
        assert "NETFILTER_DROP" not in others.counted()
