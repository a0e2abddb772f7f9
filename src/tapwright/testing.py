"""Fixtures for pytest, for tests of CNI plugins and of programs that use networks
(docs/testing.md).

pytest finds them where Tapwright is installed. Tests that use them run as root.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tapwright.cni.results import Result
    from tapwright.library.sandbox import Sandbox

_PLUGIN_DIRS = "tapwright_plugin_dirs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        _PLUGIN_DIRS,
        "the directories of CNI plugins, searched in order (default: $CNI_PATH, else bin_dirs of "
        "Tapwright's configuration)",
        type="paths",
    )


@pytest.fixture
def tapwright_netns(request: pytest.FixtureRequest) -> Iterator[str]:
    """The path of a new network namespace, which the fixture removes at the test's end."""
    _need_root()
    from tapwright.linux import netns

    path = netns.path_of(f"tapwright-test-{os.getpid()}-{os.urandom(4).hex()}")
    netns.create(path)
    yield path
    netns.remove(path)


@pytest.fixture
def tapwright_network(
    request: pytest.FixtureRequest, tapwright_netns: str, tmp_path: Path
) -> Iterator["Callable[..., Result]"]:
    """A function that attaches `tapwright_netns` to a network, and returns the result.

    `attach(conflist, ifname="eth0", netns=…, capability_args={…}, args={…})`: the network is a
    conflist or a single plugin's configuration, as a dict, as JSON or as the path of a file.
    At the test's end the fixture detaches all, the last one first. Raises
    `tapwright.cni.ConfigurationError` and `PluginError`.
    """
    from tapwright.cni import Attachment, Runtime

    directories = _plugin_dirs(request.config)
    runtime = Runtime(directories, str(tmp_path / "tapwright-cni-cache"))
    attached: list[tuple[Any, Any]] = []

    def attach(
        conflist: "Mapping[str, Any] | str | Path",
        ifname: str = "eth0",
        *,
        netns: str = "",
        capability_args: Mapping[str, Any] | None = None,
        args: Mapping[str, str] | None = None,
    ) -> "Result":
        network = _network(conflist)
        where = netns or tapwright_netns
        attachment = Attachment(
            f"test-{Path(where).name}",
            ifname,
            where,
            capability_args=dict(capability_args or {}),
            args=tuple((args or {}).items()),
        )
        result = runtime.add(network, attachment)
        attached.append((network, attachment))
        return result

    yield attach
    for network, attachment in reversed(attached):
        runtime.delete(network, attachment)


@pytest.fixture
def tapwright_sandbox(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator["Callable[..., Sandbox]"]:
    """A function that runs a sandbox; the fixture deletes the sandbox at the test's end.

    The function takes the arguments of `tapwright.Sandbox.run`; `networks` may be configurations,
    as for `tapwright_network`.
    """
    _need_root()
    from tapwright import config as configuration
    from tapwright.library.sandbox import Sandbox

    root, networks_dir = tmp_path / "tapwright", tmp_path / "tapwright-net.d"
    networks_dir.mkdir()
    made: list[Sandbox] = []

    def run(
        *,
        networks: "Sequence[Mapping[str, Any] | str | Path]" = (),
        config: Any = None,
        **more: Any,
    ) -> "Sandbox":
        loaded = config if hasattr(config, "cni") else configuration.load(config and str(config))
        names = [_named(network, networks_dir) for network in networks]
        changes: dict[str, Any] = {
            "bin_dirs": _plugin_dirs(request.config),
            "cache_dir": str(tmp_path / "tapwright-cni-cache"),
        }
        if any(networks_dir.iterdir()):
            changes["conf_dir"] = str(networks_dir)
        # The next test has a root of its own, so it could not use a spare of this one.
        loaded = loaded._replace(
            cni=loaded.cni._replace(**changes),
            factory=loaded.factory._replace(vm_cache_number=0),
        )
        sandbox = Sandbox.run(networks=names, config=loaded, root=root, **more)
        made.append(sandbox)
        return sandbox

    yield run
    for sandbox in reversed(made):
        sandbox.delete()


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces and virtual machines need root")


def _plugin_dirs(config: pytest.Config) -> tuple[str, ...]:
    if given := config.getini(_PLUGIN_DIRS):
        return tuple(map(str, given))
    if path := os.environ.get("CNI_PATH"):
        return tuple(path.split(os.pathsep))
    from tapwright import config as configuration

    return configuration.load().cni.bin_dirs


def _network(given: "Mapping[str, Any] | str | Path") -> Any:
    from tapwright.cni import load_network, parse_network

    if isinstance(given, Path) or (isinstance(given, str) and not given.lstrip().startswith("{")):
        return load_network(str(given))
    text = given if isinstance(given, str) else json.dumps(given)
    return parse_network(text.encode(), "the test")


def _named(given: "Mapping[str, Any] | str | Path", directory: Path) -> str:
    """The network's name, as `Sandbox.run` takes it (NAME[:IFNAME]). A configuration is written to
    a file first."""
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        return given
    network = _network(given)
    (directory / f"{network.name}.conflist").write_bytes(network.whole)
    return str(network.name)
