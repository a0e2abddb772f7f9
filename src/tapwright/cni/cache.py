"""Remembers attachments in libcni's own directory and format.

libcni (libcni/api.go, `cachedInfo`) keeps one file an attachment, <dir>/results/<network>-
<container id>-<ifname>, of the kind "cniCacheV1". So any other user of libcni can delete an
attachment that was made here, and the other way round. This module writes each file twice: before
the first plugin runs, without a result, so that GC finds a trace after a kill; and at the end, with
the result.

A key of our own, which libcni ignores and does not write, has more: the namespace to which the path
led, the whole configuration where plugins came from a folder, and after a DEL that failed, the
plugins that it has deleted.
"""

import binascii
import contextlib
import json
import os
from typing import Any, NamedTuple

from tapwright.cni import namespaces, strictjson
from tapwright.cni.errors import CniError
from tapwright.cni.request import Attachment

DEFAULT_DIRECTORY = "/var/lib/cni"
_KIND = "cniCacheV1"
_OURS = "tapwright"
_MOST_BYTES = 255  # of a name (NAME_MAX, limits.h)


class TornError(CniError):
    """An incomplete file: its writer did not finish it."""


class LegacyError(CniError):
    """A file of libcni before 0.8, which is a `result` and nothing else."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class Entry(NamedTuple):
    """One file of the cache. `config` is the network's configuration at ADD; `result` is None when
    ADD did not finish. `namespace` is the attachment's, None if unknown; `whole` is the
    configuration with the plugins from its folder, too. `deleted` are the plugins whose DEL has
    succeeded while that of others failed: their number in the network, and their type."""

    network: str
    attachment: Attachment
    config: bytes
    result: dict[str, Any] | None
    namespace: namespaces.Namespace | None = None
    whole: bytes = b""
    deleted: tuple[tuple[int, str], ...] = ()


def path_of(directory: str, network: str, attachment: Attachment) -> str:
    return os.path.join(directory, "results", _file_name(network, attachment))


def _file_name(network: str, attachment: Attachment) -> str:
    return f"{network}-{attachment.container_id}-{attachment.ifname}"


def write(path: str, entry: Entry) -> None:
    """Remember an attachment. The file is always complete, but a loss of power may lose it, like
    libcni's own. Raises CniError."""
    attachment = entry.attachment
    content = {
        "kind": _KIND,
        "containerId": attachment.container_id,
        "config": binascii.b2a_base64(entry.config, newline=False).decode(),
        "ifName": attachment.ifname,
        "networkName": entry.network,
    }
    optional: dict[str, Any] = {
        "netns": attachment.netns,
        "cniArgs": attachment.args,
        "capabilityArgs": attachment.capability_args,
        "result": entry.result,
        _OURS: _ours(entry),
    }
    content |= {key: value for key, value in optional.items() if value}
    try:
        data = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CniError(f"the capability arguments can't be written as JSON: {error}") from None
    _replace(path, data)


def _ours(entry: Entry) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    if entry.namespace:
        ours["namespace"] = entry.namespace._asdict()
    if entry.whole != entry.config:
        ours["whole"] = entry.whole.decode(errors="replace")
    if entry.deleted:
        ours["deleted"] = entry.deleted
    return ours


def _replace(path: str, data: str) -> None:
    folder, name = os.path.split(path)
    temporary = _draft(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(data)
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise CniError(
            f"the attachment can't be remembered in {folder} as {name}: {error.strerror}"
        ) from None


def _draft(path: str) -> str:
    """The path of a file before it is complete: no attachment has such a name, and it is short
    enough for a name. The lock on the container keeps other writers out. `remove` removes what a
    killed writer has left."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}"[:_MOST_BYTES])


def read(path: str) -> Entry | None:
    """The remembered attachment; None when the file does not exist.

    Raises TornError for an incomplete file, LegacyError for a file with only a result, CniError for
    any other invalid file.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CniError(f"{path} can't be read: {error.strerror}") from None
    try:
        content = strictjson.parse(raw)
    except ValueError as error:
        raise TornError(_complaint(path, error)) from None
    if isinstance(content, dict) and "kind" not in content:
        raise LegacyError(_complaint(path, ValueError("it has no kind")), content)
    try:
        entry = _entry(content)
        # GC removes the file that an entry names, which must be this one and no other path.
        if _file_name(entry.network, entry.attachment) != os.path.basename(path):
            raise ValueError("its content does not fit its name")
        return entry
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise CniError(_complaint(path, error)) from None


def _complaint(path: str, error: Exception) -> str:
    return f"{path} is not a remembered attachment: {error}. DEL of that attachment removes it"


def _entry(content: Any) -> Entry:
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ValueError(f"its kind is not {_KIND}")
    network = _text(content, "networkName")
    attachment = Attachment(
        container_id=_text(content, "containerId"),
        ifname=_text(content, "ifName"),
        netns=_text(content, "netns") if content.get("netns") else "",
        args=tuple((str(key), str(value)) for key, value in content.get("cniArgs") or ()),
        capability_args=_object(content, "capabilityArgs") or {},
    )
    config = binascii.a2b_base64(content.get("config") or "", strict_mode=True)
    ours = _object(content, _OURS) or {}
    whole = _text(ours, "whole").encode() if "whole" in ours else config
    namespace = namespaces.from_json(ours.get("namespace"))
    deleted = tuple((int(number), str(kind)) for number, kind in ours.get("deleted") or ())
    return Entry(network, attachment, config, _object(content, "result"), namespace, whole, deleted)


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"key '{key}' is not a text")
    return value


def _object(content: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"key '{key}' is not an object")
    return value


def remove(path: str) -> None:
    for each in (path, _draft(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each)


def entries(directory: str) -> tuple[list[Entry], list[str]]:
    """(all remembered attachments, in the order of the files; what is wrong with other files)."""
    folder = os.path.join(directory, "results")
    found: list[Entry] = []
    problems: list[str] = []
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise CniError(f"{folder} can't be read: {error.strerror}") from None
    for name in names:
        try:
            entry = read(os.path.join(folder, name))
        except CniError as problem:
            problems.append(str(problem))
        else:
            if entry:
                found.append(entry)
    return found, problems
