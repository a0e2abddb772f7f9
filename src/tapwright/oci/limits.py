"""The limits that `update` sets (config-linux.md, "Control groups"), and durations, as the command
line has them."""

import json
import re
import sys

from tapwright.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.shapes import Json

_PLACES = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "pids-limit": ("pids", "limit"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
}
_PASSED_OVER = ("kernel-memory", "kernel-memory-tcp")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)  # as go-units reads them
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def read(path: str) -> "Json":
    """linux.resources from a file, `-` for stdin. Raises UsageError."""
    try:
        if path == "-":
            content = json.load(sys.stdin)
        else:
            with open(path) as file:
                content = json.load(file)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: the resources must be an object")
    return content


def of_options(given: "dict[str, str]") -> "Json":
    """linux.resources from command-line options, by the option's name. Raises UsageError."""
    found: Json = {}
    for name, text in given.items():
        if name in _PASSED_OVER:
            continue
        if name not in _PLACES:
            raise UsageError(f"--{name} can't be set in a VM; leave it out")
        section, key = _PLACES[name]
        value = _list(name, text) if name.startswith("cpuset") else _number(name, text)
        found.setdefault(section, {})[key] = value
    return found


def seconds(text: str) -> float:
    """The seconds of a duration in Go's form, `5s`, `100ms`. Raises UsageError."""
    match = _DURATION.fullmatch(text)
    if not match or not float(match[1]):
        raise UsageError(f"{text!r} is not a duration: 5s, 100ms, 1m")
    return float(match[1]) * _SECONDS[match[2]]


def _list(name: str, text: str) -> str:
    if not _LIST.fullmatch(text):
        raise UsageError(f"--{name}: {text!r} is not a list of numbers such as 0-2,4")
    return text


def _number(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if text == "-1":
        return -1
    if text.isdecimal():
        return int(text)
    if not match or not name.startswith("memory"):
        raise UsageError(f"--{name}: {text!r} is not a number")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
