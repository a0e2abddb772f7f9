from typing import Any

import pytest

from tapwright.agent.guest import crun

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "domain"),
    [({}, "LINUX"), ({"linux": {"personality": None}}, "LINUX"), ("LINUX32", "LINUX32")],
)
def test_execution_domain_of_a_container(given: Any, domain: str) -> None:
    config = {"linux": {"personality": {"domain": given}}} if isinstance(given, str) else given
    crun.at_random_addresses(config)
    assert config["linux"]["personality"] == {"domain": domain}
