from pathlib import Path
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


def test_a_mount_of_control_groups_without_options() -> None:
    given = [{"type": "cgroup"}, {"type": "cgroup", "options": ["ro"]}, {"type": "proc"}]
    config: dict[str, Any] = {"mounts": given}
    crun.without_options_of_version_1(config)
    assert [mount.get("options") for mount in config["mounts"]] == [["rw"], ["ro"], None]
    crun.without_options_of_version_1({})


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ('{"msg": "first"}\n{"msg":"exec: nowhere: No such {file}", "level":"error"}\n', "exec"),
        ('{\n  "msg": "first"\n}\n{\n  "msg": "exec: nowhere",\n  "level": "error"\n}\n', "exec"),
        ('"level": "error"}\n{\n  "msg": "exec: nowhere"\n}\n', "exec"),
        ('{"msg": "a very long' + "x" * 5000 + ' {"}\n{"msg": "exec: nowhere"}', "exec"),
        ("", "crun ended with status 3"),
        ("no JSON {", "crun ended with status 3"),
        ('{"level": "error"}', "crun ended with status 3"),
    ],
    ids=("a line each", "several lines", "cut off", "cut off in it", "empty", "none", "no words"),
)
def test_the_last_error(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "log").write_text(log)
    with open(tmp_path / "log", "rb") as file:
        assert crun._reason(file.fileno(), 3).startswith(reason)
