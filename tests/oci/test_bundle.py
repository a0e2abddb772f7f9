from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.oci import bundle
from tests.oci.bundles import configuration, write


def load(directory: Path, content: dict[str, Any]) -> bundle.Bundle:
    return bundle.load(str(write(directory, content)))


def test_paths_are_of_the_bundle(tmp_path: Path) -> None:
    loaded = load(tmp_path, configuration())
    assert loaded.rootfs == str(tmp_path / "rootfs")
    assert loaded.path("../etc/hosts") == str(tmp_path.parent / "etc/hosts")
    assert loaded.path("/etc/hosts") == "/etc/hosts"


def test_namespaces(tmp_path: Path) -> None:
    content = configuration()
    content["linux"]["namespaces"] = [{"type": "network", "path": "/run/x"}, {"type": "pid"}]
    loaded = load(tmp_path, content)
    found = [loaded.namespace(kind) for kind in ("network", "pid", "uts")]
    assert found == ["/run/x", "", None]


def test_null_is_nothing(tmp_path: Path) -> None:
    """Go writes it for what is empty."""
    content = configuration(hooks=None, mounts=[])
    content["mounts"] = content["linux"]["resources"] = None
    loaded = load(tmp_path, content)
    assert loaded.config.get("mounts", ()) == ()
    assert loaded.linux.get("resources", {}) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ociVersion": "2.0.0"}, "ociVersion is '2.0.0'"),
        ({"process": {"args": []}}, "process.args is missing"),
        ({"process": {"args": "true"}}, "process.args must be a list"),
        ({"process": {"args": ["sh", 1]}}, r"process.args\[1\] must be a string"),
        ({"process": {"cwd": "tmp"}}, "process.cwd must be an absolute path"),
        ({"process": {"user": {"uid": True}}}, "process.user.uid must be a whole number"),
        ({"root": {"path": ""}}, "root.path is missing"),
        ({"root": {"path": "nowhere"}}, "no such file or directory"),
        ({"linux": []}, "linux must be an object"),
        ({"mounts": [{"type": "bind"}]}, "a mount has no destination"),
        ({"hooks": {"prestart": [{"path": 1}]}}, r"hooks.prestart\[0\].path must be a string"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        load(tmp_path, configuration(**changes))


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        bundle.load(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BundleError, match="not a JSON object"):
        bundle.load(str(tmp_path))
