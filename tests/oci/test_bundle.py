import json
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.oci import bundle, home
from tests.oci.bundles import configuration, write

pytestmark = pytest.mark.unit


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
    content = configuration(hooks=None, mounts=[], annotations={"a": None})
    content["mounts"] = content["linux"]["resources"] = None
    loaded = load(tmp_path, content)
    assert loaded.config.get("mounts", ()) == ()
    assert loaded.linux.get("resources", {}) == {}
    assert loaded.annotations == {"a": ""}


def test_any_version_of_the_specification(tmp_path: Path) -> None:
    """runc does not look at it, and people's files lack it."""
    content = configuration(ociVersion="2.0.0")
    assert load(tmp_path, content).config["ociVersion"] == "2.0.0"
    del content["ociVersion"]
    assert load(tmp_path, content).process["args"] == ["true"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ociVersion": 2}, "ociVersion must be a string"),
        ({"process": {"args": []}}, "process.args is missing"),
        ({"process": {"args": "true"}}, "process.args must be a list"),
        ({"process": {"args": ["sh", 1]}}, r"process.args\[1\] must be a string"),
        ({"process": {"cwd": "tmp"}}, "process.cwd must be an absolute path"),
        ({"process": {"user": {"uid": True}}}, "process.user.uid must be a whole number"),
        ({"process": {"user": {"uid": 0, "gid": 2**32 - 1}}}, "must be in range 0-4294967294"),
        ({"process": {"env": ["A=1", "WORD"]}}, "invalid environment variable: missing '='"),
        ({"process": {"env": ["=x"]}}, "name cannot be empty"),
        ({"process": {"env": ["A=\0"]}}, "value can't contain null"),
        ({"root": {"path": ""}}, "root.path is missing"),
        ({"root": {"path": "nowhere"}}, "no such file or directory"),
        ({"linux": []}, "linux must be an object"),
        ({"mounts": [{"type": "bind"}]}, "a mount has no destination"),
        (
            {"linux": {"namespaces": [{"type": "pid"}, {"type": "time", "path": "/x"}]}},
            'namespace {"time" "/x"} does not exist',
        ),
        (
            {"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}},
            'malformed spec file: duplicated ns {"pid" ""}',
        ),
        ({"hooks": {"prestart": [{"path": 1}]}}, r"hooks.prestart\[0\].path must be a string"),
        ({"annotations": {"a": "b", "io.x/y": 5}}, "annotations.io.x/y must be a string"),
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


# A stack of 8 MiB, a quarter of which is for these; a string has its end, and a pointer.
MOST = 2 << 20
EACH = 9


def filling(total: int) -> list[str]:
    """An environment that takes so many bytes, with `true` as the only argument."""
    total -= len("true") + EACH
    count = total // (100_000 + EACH)
    sizes = [100_000] * count + [total - count * (100_000 + EACH) - EACH]
    return [f"V{number:03}=".ljust(size, "x") for number, size in enumerate(sizes)]


def test_an_environment_may_be_as_large_as_a_kernel_takes(tmp_path: Path) -> None:
    for env in (
        filling(MOST),
        ["A=".ljust((128 << 10) - 1, "x")],
        # Only the last one of a name counts.
        [*filling(MOST), *filling(MOST)],
    ):
        assert load(tmp_path, configuration(process={"env": env})).process["env"] == env


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (
            {"env": filling(MOST + 1)},
            "process.args and process.env have 2097153 bytes .* 2097152 at most:",
        ),
        ({"env": ["A=".ljust(128 << 10, "x")]}, r"process.env \(A\) has a string of 131072 bytes"),
        ({"env": ["A=" + "é" * (64 << 10)]}, r"process.env \(A\) has a string of 131074 bytes"),
        ({"args": ["true", "x" * (128 << 10)]}, "process.args has a string of 131072 bytes"),
        (
            {
                "env": filling(MOST),
                "rlimits": [{"type": "RLIMIT_STACK", "soft": (8 << 20) - 4, "hard": 8 << 20}],
            },
            "takes 2097151 at most: a quarter of RLIMIT_STACK",
        ),
        (
            {
                "env": filling((6 << 20) + 1),
                "rlimits": [{"type": "RLIMIT_STACK", "soft": 2**64 - 1, "hard": 2**64 - 1}],
            },
            "takes 6291456 at most: a quarter of RLIMIT_STACK, but no more than 6 MiB",
        ),
    ],
)
def test_what_no_kernel_takes_is_refused(
    tmp_path: Path, process: dict[str, Any], reason: str
) -> None:
    content = configuration(process=process)
    with pytest.raises(BundleError, match=reason):
        load(tmp_path, content)
    path = tmp_path / "process.json"
    path.write_text(json.dumps(content["process"]))
    with pytest.raises(BundleError, match=reason):
        bundle.load_process(str(path))


def test_a_configuration_may_have_8_mib(tmp_path: Path) -> None:
    write(tmp_path, configuration())
    path = tmp_path / "config.json"
    path.write_text(path.read_text().ljust(8 << 20))
    assert bundle.load(str(tmp_path)).process["args"] == ["true"]
    path.write_text(path.read_text() + " ")
    with pytest.raises(BundleError, match="has more than 8388608 bytes"):
        bundle.load(str(tmp_path))


def test_home_where_a_link_leads_to_the_bundle(tmp_path: Path) -> None:
    """As /var/run does; what is a link in the container is for the guest to follow."""
    write(tmp_path / "real", configuration())
    (tmp_path / "real/rootfs/etc").mkdir(exist_ok=True)
    (tmp_path / "real/rootfs/etc/passwd").write_text("root:x:0:0::/root:\n")
    (tmp_path / "link").symlink_to("real")
    loaded = bundle.load(str(tmp_path / "link"))
    process = {"args": ["true"], "env": ["PATH=/bin"], "user": {"uid": 0}}
    assert home.given(process, loaded)["env"] == ["PATH=/bin", "HOME=/root"]
    assert home.given(process | {"user": {"uid": 7}}, loaded)["env"] == ["PATH=/bin", "HOME=/"]
    (tmp_path / "real/rootfs/etc/passwd").rename(tmp_path / "real/rootfs/etc/users")
    (tmp_path / "real/rootfs/etc/passwd").symlink_to("users")
    assert home.given(process, loaded)["env"] == ["PATH=/bin"]
