"""Compiles the seccomp profile of a container (config-linux.md, "Seccomp") into the program that
the guest's kernel runs for each system call.

The host's libseccomp compiles it as runc does (libcontainer/seccomp). So the program is the same as
with runc, and an emulated processor is spared the work. crun in the guest uses the program as it is
(crun(1): `run.oci.seccomp_bpf_data`), for all processes of the container.
"""

import base64
import contextlib
import threading

from tapwright.errors import BundleError
from tapwright.linux import libseccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tapwright.oci.bundle import Bundle
    from tapwright.shapes import Json

_ANNOTATION = "run.oci.seccomp_bpf_data"

_PLACE = "linux.seccomp"
_ACTIONS = {
    "ALLOW": libseccomp.ALLOW,
    "LOG": libseccomp.LOG,
    "TRAP": libseccomp.TRAP,
    "KILL": libseccomp.KILL_THREAD,
    "KILL_THREAD": libseccomp.KILL_THREAD,
    "KILL_PROCESS": libseccomp.KILL_PROCESS,
    "ERRNO": libseccomp.ERRNO,
    "TRACE": libseccomp.TRACE,
}
_WITH_NUMBER = ("ERRNO", "TRACE")
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
FLAGS = tuple(
    f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "SPEC_ALLOW", "LOG", "WAIT_KILLABLE_RECV")
)
_EPERM = 1
_ARGUMENTS = 6
_TREE_FROM = 32  # rules, as in runc; with a tree of no rules the library misbehaves


class Profile:
    """A profile: the action for system calls by `default`, and `rules` for some of them (name,
    action, conditions that must all hold). `of_runtime` is the configuration that crun needs beside
    the program."""

    def __init__(self, given: "Json") -> None:
        """Raises BundleError for a profile that is impossible in a guest."""
        if given.get("listenerPath"):
            raise BundleError(
                f"{_PLACE}.listenerPath: its listener is a process of the host, which can't answer "
                "for calls that the kernel of a VM has stopped; use a profile without it"
            )
        self.default = _action(given, "defaultAction", "defaultErrnoRet")
        self.architectures = _texts(given, "architectures")
        self.of_runtime: Json = {"defaultAction": given["defaultAction"]}
        if flags := _texts(given, "flags"):
            self.of_runtime["flags"] = flags
        for flag in flags:
            if flag not in FLAGS:
                raise _refused("flags", flag, FLAGS)
        self.rules = [
            (name, action, conditions)
            for entry in _list(given, "syscalls")
            for action in (_action(entry, "action", "errnoRet"),)
            for name in _texts(entry, "names")
            for conditions in _conditions(entry)
        ]

    def program(self) -> bytes:
        """Raises BundleError."""
        try:
            rules = libseccomp.Rules(self.default)
        except OSError as error:
            raise BundleError(
                f"{_PLACE}: {libseccomp.LIBRARY} can't be loaded ({error}); install it "
                "(libseccomp2), or set disable_guest_seccomp = true"
            ) from None
        with contextlib.closing(rules):
            try:
                for name in self.architectures:
                    short = _short(name, "SCMP_ARCH_").lower()
                    if not short or not rules.add_architecture(short):
                        raise _refused("architectures", name, ARCHITECTURES)
                if len(self.rules) > _TREE_FROM:
                    rules.by_tree()
                for name, action, conditions in self.rules:
                    rules.add(name, action, conditions)
                return rules.program()
            except OSError as error:
                raise BundleError(f"{_PLACE}: libseccomp refuses it: {error.strerror}") from None


def of_bundle(bundle: "Bundle") -> "Profile | None":
    """The bundle's profile; None without one. Raises BundleError."""
    given = bundle.linux.get("seccomp") or {}
    if not given.get("defaultAction") and not given.get("syscalls"):
        return None
    return Profile(given)


class Making:
    """A program that a thread compiles while the caller goes on: it takes some 15 ms."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._found: bytes | BundleError = b""
        self._thread = threading.Thread(target=self._make, daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._found = self._profile.program()
        except BundleError as error:
            self._found = error

    def annotation(self) -> dict[str, str]:
        """The annotation from which crun takes the program. Raises BundleError."""
        self._thread.join()
        if isinstance(self._found, BundleError):
            raise self._found
        return {_ANNOTATION: base64.b64encode(self._found).decode()}


def features() -> "Json":
    """What `features` prints of it (features-linux.md, "Seccomp")."""
    return {
        "enabled": True,
        "actions": [f"SCMP_ACT_{name}" for name in _ACTIONS],
        "operators": [f"SCMP_CMP_{name}" for name in libseccomp.COMPARISONS],
        "archs": list(ARCHITECTURES),
        "knownFlags": list(FLAGS),
        "supportedFlags": list(FLAGS),
    }


def _action(where: "Json", key: str, number_key: str) -> int:
    name = _short(where.get(key), "SCMP_ACT_")
    if name == "NOTIFY":
        raise BundleError(
            f"{_PLACE}: {key}: SCMP_ACT_NOTIFY: a process of the host can't be asked for calls "
            "that the kernel of a VM has stopped; use another action"
        )
    if name not in _ACTIONS:
        raise _refused(key, where.get(key), [f"SCMP_ACT_{known}" for known in _ACTIONS])
    if name not in _WITH_NUMBER:
        return _ACTIONS[name]
    given = where.get(number_key)
    return _ACTIONS[name] | (_EPERM if given is None else _number(given, number_key) & 0xFFFF)


def _conditions(entry: "Json") -> "Iterator[list[tuple[int, int, int, int]]]":
    """The conditions of a rule: all must hold; but if one argument has several conditions, any one
    is enough (libcontainer/seccomp: matchCall)."""
    found = []
    for each in _list(entry, "args"):
        name = _short(each.get("op"), "SCMP_CMP_")
        if name not in libseccomp.COMPARISONS:
            known = [f"SCMP_CMP_{known}" for known in libseccomp.COMPARISONS]
            raise _refused("op", each.get("op"), known)
        index = _number(each.get("index") or 0, "index")
        if index >= _ARGUMENTS:
            raise _refused("index", index, range(_ARGUMENTS))
        value, second = (_number(each.get(key) or 0, key) for key in ("value", "valueTwo"))
        found.append((index, libseccomp.COMPARISONS[name], value, second))
    if len({condition[0] for condition in found}) == len(found):
        yield found
    else:
        yield from ([condition] for condition in found)


def _short(text: object, prefix: str) -> str:
    """The name without the prefix; "" for a name with another prefix."""
    return text.removeprefix(prefix) if isinstance(text, str) and text.startswith(prefix) else ""


def _list(where: "Json", key: str) -> "list[Json]":
    found = where.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise BundleError(f"{_PLACE}: {key} must be a list of objects")
    return found


def _texts(where: "Json", key: str) -> list[str]:
    found = where.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise BundleError(f"{_PLACE}: {key} must be a list of strings")
    return found


def _number(value: object, key: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise BundleError(f"{_PLACE}: {key} must be a whole number from 0 on, and is {value!r}")
    return value


def _refused(key: str, value: object, known: "Iterable[object]") -> BundleError:
    return BundleError(f"{_PLACE}: {key}: {value!r} is none of {', '.join(map(str, known))}")
