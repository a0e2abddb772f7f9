"""Reads and checks the runtime's request to a plugin (section 2, "Parameters")."""

import os
import sys

from tapwright.cni import errors, results, strictjson
from tapwright.cni.names import is_interface_name, is_name
from tapwright.cni.plugin.error import Error
from tapwright.cni.versions import CHECK, CURRENT, GC, STATUS, VERSIONS, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from tapwright.cni.results import Result

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_IFNAME")
_REQUIRED = {
    "ADD": (*_ATTACHMENT, "CNI_NETNS"),
    "CHECK": (*_ATTACHMENT, "CNI_NETNS"),
    "DEL": _ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": (),
}
_SINCE = {"CHECK": CHECK, "GC": GC, "STATUS": STATUS}
_OWN_NETNS = "/proc/self/ns/net"
_KEYS = ("cniVersion", "name", "ipam", "runtimeConfig", "prevResult")
_VALID = ("cni.dev/valid-attachments", "cni.dev/attachments")


class Request:
    """The runtime's request. Missing parameters are empty.

    `config` is the configuration from stdin, `version` its version; `args` has CNI_ARGS by key;
    `runtime_config` has the capability arguments; `valid_attachments` (for GC) has pairs of
    container id and interface name; `prev_result` is the previous plugin's result in version 1.1.0,
    or None.
    """

    def __init__(self, command: str, environment: "Mapping[str, str]", stdin: bytes) -> None:
        self.command = command
        self.container_id = environment.get("CNI_CONTAINERID", "")
        self.netns = environment.get("CNI_NETNS", "")
        self.ifname = environment.get("CNI_IFNAME", "")
        pairs = environment.get("CNI_ARGS", "").split(";")
        self.args = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        self.path = [entry for entry in environment.get("CNI_PATH", "").split(os.pathsep) if entry]
        self.stdin = stdin
        self.config: dict[str, Any] = _config(stdin)
        self.version: str = self.config.get("cniVersion") or VERSIONS[0]
        self.runtime_config: dict[str, Any] = self.config.get("runtimeConfig") or {}
        self.valid_attachments = _valid_attachments(self.config) if command == "GC" else []
        self.prev_result: Result | None = None
        self._delegated: list[str] = []

    def check(self, versions: "Sequence[str]") -> None:
        """Raises Error for a request that a plugin of these versions can't serve."""
        _check_version(self, versions)
        _check_netns(self)
        previous = self.config.get("prevResult")
        try:
            self.prev_result = self._current(previous) if previous else None
        except ValueError as error:
            raise Error(f"key 'prevResult': {error}", errors.DECODING_FAILURE) from None

    def ipam(self) -> "Result":
        """Run the IPAM plugin of the configuration, for the same command; return its result, empty
        for other commands than ADD.

        When ADD fails, here or later in the plugin, DEL of the IPAM plugin runs before the failure
        is reported (section 4). Raises Error with the IPAM plugin's own words.
        """
        kind = (self.config.get("ipam") or {}).get("type")
        if not kind:
            raise Error("key 'ipam.type' names no plugin", errors.INVALID_CONFIGURATION)
        if self.command == "ADD":
            self._delegated.append(kind)
        return self._delegate(kind, self.command)

    def undo_delegated(self) -> None:
        """Run DEL of the delegates of a failed ADD; print their failures on stderr."""
        for kind in reversed(self._delegated):
            try:
                self._delegate(kind, "DEL")
            except Error as failure:
                print(f"DEL of {kind} after the failure: {failure.message}", file=sys.stderr)
        self._delegated.clear()

    def _current(self, result: "Any") -> "Result":
        """A result in version 1.1.0. A result without a version has the request's."""
        return results.convert(results.check(result, self.version), CURRENT)

    def _delegate(self, kind: str, command: str) -> "Result":
        from tapwright.cni.plugin import delegate

        answer = delegate.run(kind, command, self.path, self.stdin)
        try:
            return self._current(answer) if answer else {}
        except ValueError as error:
            raise Error(f"{kind}: its result can't be used: {error}", errors.INTERNAL) from None


def check_environment(command: str, environment: "Mapping[str, str]") -> None:
    if command not in _REQUIRED:
        raise Error(
            f"CNI_COMMAND: {command!r} is none of {', '.join(_REQUIRED)} and VERSION",
            errors.INVALID_ENVIRONMENT,
        )
    required = _REQUIRED[command]
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise Error(f"{command} needs {', '.join(missing)}", errors.INVALID_ENVIRONMENT)
    if command in ("GC", "STATUS"):
        return
    container_id = environment["CNI_CONTAINERID"]
    if not is_name(container_id):
        raise Error(
            f"CNI_CONTAINERID: {container_id!r} is not a container id", errors.INVALID_ENVIRONMENT
        )
    ifname = environment["CNI_IFNAME"]
    if not is_interface_name(ifname):
        raise Error(f"CNI_IFNAME: {ifname!r} is not an interface name", errors.INVALID_ENVIRONMENT)


def _config(stdin: bytes) -> "dict[str, Any]":
    try:
        config = strictjson.parse(stdin)
    except ValueError as error:
        raise Error(f"stdin is not JSON: {error}", errors.DECODING_FAILURE) from None
    if not isinstance(config, dict):
        raise Error("stdin is not a JSON object", errors.DECODING_FAILURE)
    # As in Go's decoder, which other plugins have: null counts as missing, and capitals do not
    # matter.
    config = results.spelled_as(config, _KEYS)
    if isinstance(config.get("ipam"), dict):
        config["ipam"] = results.spelled_as(config["ipam"], ("type",))
    if not isinstance(config.get("cniVersion"), str | None):
        raise Error("key 'cniVersion' is not a string", errors.DECODING_FAILURE)
    name = config.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise Error(f"key 'name': {name!r} is not a network name", errors.INVALID_CONFIGURATION)
    for key in ("ipam", "runtimeConfig", "prevResult"):
        if not isinstance(config.get(key) or {}, dict):
            raise Error(f"key '{key}' is not an object", errors.INVALID_CONFIGURATION)
    return config


def _valid_attachments(config: "dict[str, Any]") -> list[tuple[str, str]]:
    # The specification had the second key first; a runtime may know only that one.
    key = next((key for key in _VALID if key in config), _VALID[0])
    try:
        return [(entry["containerID"], entry["ifname"]) for entry in config.get(key) or ()]
    except (TypeError, KeyError):
        raise Error(
            f"key '{key}' is not a list of objects with containerID and ifname",
            errors.INVALID_CONFIGURATION,
        ) from None


def _check_version(request: Request, versions: "Sequence[str]") -> None:
    version, command = request.version, request.command
    since = _SINCE.get(command, VERSIONS[0])
    if version not in versions or version not in VERSIONS:
        raise Error(
            f"version {version} is not supported",
            errors.INCOMPATIBLE_VERSION,
            f"supported: {', '.join(versions)}",
        )
    if not at_least(version, since):
        raise Error(
            f"version {version} has no {command}, which came with {since}",
            errors.INCOMPATIBLE_VERSION,
        )


def _check_netns(request: Request) -> None:
    """Refuse this process's own namespace, which is usually the host's (libcni, pkg/skel)."""
    override = os.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE")
    if request.command not in ("ADD", "DEL") or not request.netns or override:
        return
    try:
        theirs, ours = os.stat(request.netns), os.stat(_OWN_NETNS)
    except OSError:
        return  # the plugin sees whether it needs a namespace: DEL often does not
    if os.path.samestat(theirs, ours):
        raise Error(
            f"CNI_NETNS: {request.netns} is the plugin's own namespace", errors.INVALID_NETNS
        )
