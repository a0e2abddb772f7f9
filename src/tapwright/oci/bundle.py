"""A bundle: the directory with config.json that a platform hands over (runtime-spec, bundle.md and
config.md). This module reads and checks it, so that other modules can rely on its shape."""

import json
import os

from tapwright import shapes
from tapwright.errors import BundleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Json = dict[str, Any]

_FILE = "config.json"
_MAX_BYTES = 8 << 20

# The kernel's limits for a program's arguments and environment (execve(2); fs/exec.c,
# bprm_stack_limits): together a quarter of the stack's limit, within bounds.
_STRING_BYTES = 128 << 10  # MAX_ARG_STRLEN
_LEAST_BYTES, _MOST_BYTES = 128 << 10, 6 << 20
_STACK_BYTES = 8 << 20  # _STK_LIM
_POINTER_BYTES = 8
_MOST_ID = 2**32 - 2  # the last number stands for no change (setresuid(2))

# As runc 1.1 knows them (libcontainer, specconv, spec_linux.go).
_NAMESPACES = frozenset(("pid", "network", "mount", "user", "ipc", "uts", "cgroup"))

HOOKS = (
    *("prestart", "createRuntime", "createContainer", "startContainer"),
    *("poststart", "poststop"),
)

_TEXTS: "Any" = [str]
_MAPPINGS = [dict.fromkeys(("containerID", "hostID", "size"), int)]
_HOOK = {"path": str, "args": _TEXTS, "env": _TEXTS, "timeout": int}
_PROCESS: "Json" = {
    "args": _TEXTS,
    "env": _TEXTS,
    "cwd": str,
    "terminal": bool,
    "consoleSize": {"height": int, "width": int},
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": [int]},
    "capabilities": dict.fromkeys(
        ("bounding", "effective", "inheritable", "permitted", "ambient"), _TEXTS
    ),
    "rlimits": [{"type": str, "hard": int, "soft": int}],
    "oomScoreAdj": int,
    "noNewPrivileges": bool,
    "apparmorProfile": str,
    "selinuxLabel": str,
}
# The keys that this runtime uses, or hands on to the guest; it ignores others. A list has one
# entry, whose shape all entries must have.
_CONFIG: "Json" = {
    "ociVersion": str,
    "root": {"path": str, "readonly": bool},
    "process": _PROCESS,
    "hostname": str,
    "domainname": str,
    "mounts": [
        dict.fromkeys(("destination", "type", "source"), str)
        | {"options": _TEXTS, "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS}
    ],
    "annotations": dict,
    "hooks": {kind: [_HOOK] for kind in HOOKS},
    "linux": {
        "namespaces": [{"type": str, "path": str}],
        "uidMappings": _MAPPINGS,
        "gidMappings": _MAPPINGS,
        "devices": [
            {"path": str, "type": str}
            | dict.fromkeys(("major", "minor", "fileMode", "uid", "gid"), int)
        ],
        "cgroupsPath": str,
        "sysctl": dict,
        "netDevices": dict,
        "resources": {"memory": dict, "cpu": dict, "pids": dict, "unified": dict},
        "seccomp": dict,
        "maskedPaths": _TEXTS,
        "readonlyPaths": _TEXTS,
        "mountLabel": str,
        "rootfsPropagation": str,
    },
}


class Bundle:
    """`config` is config.json without null values; `rootfs` is the root filesystem's absolute
    path."""

    def __init__(self, directory: str, config: "Json") -> None:
        self.directory = directory
        self.config = config
        self.rootfs = self.path(config["root"]["path"])

    @property
    def process(self) -> "Json":
        process: Json = self.config["process"]
        return process

    @property
    def linux(self) -> "Json":
        linux: Json = self.config.get("linux", {})
        return linux

    @property
    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.config.get("annotations", {})
        return found

    def path(self, path: str) -> str:
        """A path of config.json, which may be relative to the bundle (config.md)."""
        return os.path.normpath(os.path.join(self.directory, path))

    def namespace(self, kind: str) -> str | None:
        """The path of the namespace of that type, empty for a new one; None without such an
        entry."""
        for entry in self.linux.get("namespaces", ()):
            if entry["type"] == kind:
                return str(entry.get("path", ""))
        return None


def load(directory: str) -> Bundle:
    """Read a bundle. Raises BundleError, which names the file and the mistake."""
    directory = os.path.abspath(directory)
    path = os.path.join(directory, _FILE)
    config = _read(path)
    _check(config, _CONFIG, path, "")
    _check_annotations(config.get("annotations", {}), path)
    if not config.get("root", {}).get("path"):
        raise BundleError(f"{path}: root.path is missing: a container needs a root filesystem")
    check_process(config.get("process"), path)
    bundle = Bundle(directory, config)
    if not os.path.isdir(bundle.rootfs):
        raise BundleError(f"{path}: root.path: {bundle.rootfs}: no such file or directory")
    linux = config.get("linux", {})
    for what, key, listed in (
        ("a mount", "destination", config.get("mounts", ())),
        ("a namespace", "type", linux.get("namespaces", ())),
        ("a device", "path", linux.get("devices", ())),
        *(("a hook", "path", config.get("hooks", {}).get(kind, ())) for kind in HOOKS),
    ):
        if not all(each.get(key) for each in listed):
            raise BundleError(f"{path}: {what} has no {key}")
    _check_namespaces(linux.get("namespaces", ()))
    return bundle


def load_process(path: str) -> "Json":
    """The process object of `exec --process`. Raises BundleError."""
    process = _read(path)
    _check(process, _PROCESS, path, "")
    check_process(process, path)
    return process


def check_process(process: "Json | None", where: str) -> None:
    """Raises BundleError for a process that can't be run."""
    if not process or not process.get("args"):
        raise BundleError(f"{where}: process.args is missing: there is nothing to run")
    if not process.get("cwd", "").startswith("/"):
        raise BundleError(f"{where}: process.cwd must be an absolute path")
    _check_user(process)
    _check_environment(process)
    _check_size(process, where)


def _check_namespaces(namespaces: "Iterable[Json]") -> None:
    """Raises BundleError, in runc's words (libcontainer, specconv: CreateLibcontainerConfig)."""
    seen = set[str]()
    for each in namespaces:
        kind, path = each["type"], each.get("path", "")
        named = f"{{{json.dumps(kind)} {json.dumps(path)}}}"
        if kind not in _NAMESPACES:
            raise BundleError(f"namespace {named} does not exist")
        if kind in seen:
            raise BundleError(f"malformed spec file: duplicated ns {named}")
        seen.add(kind)


def _check_user(process: "Json") -> None:
    """Raises BundleError, in the words of runc before 1.3 (libcontainer, init_linux.go:
    setupUser)."""
    user = process.get("user", {})
    if not all(0 <= user.get(kind, 0) <= _MOST_ID for kind in ("uid", "gid")):
        raise BundleError(f"unable to setup user: uids and gids must be in range 0-{_MOST_ID}")


def _check_environment(process: "Json") -> None:
    """Raises BundleError, in runc's words (libcontainer, init_linux.go:
    populateProcessEnvironment), for entries that a program would not get unchanged."""
    for text in process.get("env", ()):
        name, equals, value = text.partition("=")
        if not equals:
            raise BundleError("invalid environment variable: missing '='")
        if not name:
            raise BundleError("invalid environment variable: name cannot be empty")
        for what, part in (("name", name), ("value", value)):
            if "\0" in part:
                raise BundleError(
                    f"environment variable {what} can't contain null(\\x00): {json.dumps(text)}"
                )


def _check_size(process: "Json", where: str) -> None:
    """Raises BundleError for arguments and an environment that are too large for execve(2), which
    would otherwise fail after everything is made."""
    # Of variables with one name, the last one counts.
    variables = {text.partition("=")[0]: text for text in process.get("env", ())}
    words = [("process.args", text) for text in process["args"]]
    words += [(f"process.env ({name[:64]})", text) for name, text in variables.items()]
    total = 0
    for field, text in words:
        size = len(text.encode(errors="surrogatepass")) + 1
        total += size + _POINTER_BYTES
        if size > _STRING_BYTES:
            raise BundleError(
                f"{where}: {field} has a string of {size - 1} bytes, and the kernel takes "
                f"{_STRING_BYTES - 1} at most; pass it in a file"
            )
    most = min(max(_stack(process) // 4, _LEAST_BYTES), _MOST_BYTES)
    if total > most:
        raise BundleError(
            f"{where}: process.args and process.env have {total} bytes (each string counts "
            f"{_POINTER_BYTES + 1} more than its own), and the kernel takes {most} at most: a "
            "quarter of RLIMIT_STACK, but no more than 6 MiB; pass some of it in files"
        )


def _stack(process: "Json") -> int:
    for limit in process.get("rlimits", ()):
        if limit.get("type") == "RLIMIT_STACK":
            return int(limit.get("soft", _STACK_BYTES))
    return _STACK_BYTES


def _read(path: str) -> "Json":
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise BundleError(f"{path} is too large: it has more than {_MAX_BYTES} bytes")
        content = json.loads(raw)
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path} is not a JSON object")
    return content


def _check(value: "Any", shape: "Any", path: str, place: str) -> None:
    """Raises BundleError for a value that does not have its shape; removes null values."""
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{path}: {place.lstrip('.')} must be {shapes.NAMES[kind]}")
    if kind is list and shape is not list:
        for number, entry in enumerate(value):
            _check(entry, shape[0], path, f"{place}[{number}]")
    elif kind is dict and shape is not dict:
        for key in [key for key in shape if key in value]:
            if value[key] is None:
                del value[key]
            else:
                _check(value[key], shape[key], path, f"{place}.{key}")


def _check_annotations(annotations: "Json", path: str) -> None:
    """Raises BundleError for an annotation that is no string (config.md, "Annotations"). Null
    becomes an empty string, as in Go."""
    for name, value in annotations.items():
        if value is None:
            annotations[name] = ""
        elif not isinstance(value, str):
            raise BundleError(f"{path}: annotations.{name} must be a string")
