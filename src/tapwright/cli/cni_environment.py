"""What `tapwright cni` reads from the environment, as cnitool does (cnitool/cmd/root.go)."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from tapwright.errors import UsageError

if TYPE_CHECKING:
    from tapwright.cni import Attachment, Network, Runtime
    from tapwright.cni.invoke import Trace

DESCRIPTION = """\
environment, as of cnitool:
  NETCONFPATH  the directory of networks (default: /etc/cni/net.d)
  CNI_PATH     the directories of plugins, separated by ':'
               (default: /opt/cni/bin:/usr/lib/cni:/usr/libexec/cni)
  CNI_IFNAME   the interface in the namespace (default: eth0)
  CNI_ARGS     arguments for all plugins: KEY=VALUE;KEY=VALUE
  CAP_ARGS     capability arguments as JSON: {"portMappings": [{"hostPort": 80, …}]}
"""


def network(arguments: argparse.Namespace, any_version: bool = False) -> "Network":
    """The network that the command names. Raises ConfigurationError."""
    from tapwright.cni import find_network

    return find_network(net_dir(arguments), arguments.network, any_version)


def attachment(arguments: argparse.Namespace) -> "Attachment":
    """The attachment that cnitool would make, with the same container id (cnitool/cmd/root.go)."""
    from tapwright.cni import Attachment

    netns = os.path.abspath(arguments.netns)
    made_up = f"cnitool-{_sha512(os.fsencode(netns))[:10].hex()}"
    return Attachment(
        container_id=arguments.container_id or made_up,
        ifname=arguments.ifname or os.environ.get("CNI_IFNAME") or "eth0",
        netns=netns,
        args=_cni_args(os.environ.get("CNI_ARGS", "")),
        capability_args=_capability_args(os.environ.get("CAP_ARGS", "")),
    )


def _sha512(data: bytes) -> bytes:
    try:
        # Without OpenSSL, which takes 2 ms to load; the standard library's `random` does the same.
        from _sha512 import sha512  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha512
    return bytes(sha512(data).digest())


def _cni_args(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in text.split(";") if text else ():
        key, _, value = part.partition("=")
        if not key or not value or "=" in value:
            raise UsageError(f"CNI_ARGS: {part!r} is not KEY=VALUE; pairs are separated by ';'")
        pairs.append((key, value))
    return tuple(pairs)


def _capability_args(text: str) -> dict[str, Any]:
    from tapwright.cni import strictjson

    try:
        arguments = strictjson.parse(text.encode()) if text else None
    except ValueError as error:
        raise UsageError(f"CAP_ARGS is not JSON: {error}") from None
    if not isinstance(arguments, dict | None):
        raise UsageError('CAP_ARGS must be a JSON object such as {"mac": "02:00:00:00:00:01"}')
    return arguments or {}


def runtime(arguments: argparse.Namespace, trace: "Trace | None" = None) -> "Runtime":
    """A runtime with the plugin path and cache of options, environment and configuration."""
    from tapwright.cni import Runtime

    configured = _configured(arguments)
    path = os.environ.get("CNI_PATH", "").split(os.pathsep)
    options: dict[str, Any] = {}
    if directories := [entry for entry in path if entry] or list(configured.get("bin_dirs", ())):
        options["plugin_path"] = directories
    if cache := arguments.cache_dir or configured.get("cache_dir"):
        options["cache_directory"] = os.path.abspath(cache)
    return Runtime(trace=trace, **options)


def net_dir(arguments: argparse.Namespace) -> str:
    from tapwright.cni.directory import DEFAULT_DIRECTORY

    configured = _configured(arguments).get("conf_dir", DEFAULT_DIRECTORY)
    return os.environ.get("NETCONFPATH") or str(configured)


def _configured(arguments: argparse.Namespace) -> dict[str, Any]:
    """[cni] of configuration.toml; empty without a file, because loading the defaults takes as long
    as a plugin."""
    from tapwright import config

    if config.find(arguments.config) is None:
        return {}
    return config.load(arguments.config).cni._asdict()
