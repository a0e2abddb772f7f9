"""What an agent is asked is looked at before anything is done."""

from typing import Any

import pytest

from tapwright.agent.guest import requests

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "set_clock", "seconds": 5}, ""),
        ({"op": "set_clock"}, "set_clock: seconds is missing"),
        ({"op": "set_clock", "seconds": True}, "set_clock: seconds must be a number"),
        ({"op": "set_sysctls", "sysctls": [["a", "b"]]}, ""),
        ({"op": "set_sysctls", "sysctls": [["a", 1]]}, "set_sysctls: sysctls must be a list"),
        ({"op": "set_dns", "domain": None, "search": ["a"]}, ""),
        ({"op": "set_dns", "search": "a"}, "set_dns: search must be"),
        ({"op": "exec", "argv": ["a"], "env": {"A": 1}}, "exec: env must be an object"),
        ({"op": "batch", "requests": [{"op": "replay"}]}, "replay: messages is missing"),
        ({"op": "batch", "requests": [5]}, "batch: requests must be a list"),
        ({"op": "what a later version knows", "x": 1}, ""),
    ],
)
def test_types_are_looked_at(request_: dict[str, Any], words: str) -> None:
    found = requests.mistake(request_)
    assert words in found if words else not found
