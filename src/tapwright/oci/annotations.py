"""Annotations of a pod that configure its sandbox: Kata's, and openEuler's.

Kata's annotations name keys of the configuration. Those of the hypervisor are refused unless the
list `enable_annotations` allows them (pkg/oci/utils.go: addAnnotations). openEuler's are the VM's
size and its name servers, under two prefixes.
"""

import json
import math
import os
import re

from tapwright.errors import BundleError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tapwright.config import Config
    from tapwright.oci.log import Log

    Json = dict[str, Any]

_KATA, _VIRTCONTAINERS = "io.katacontainers.", "com.github.containers.virtcontainers."
_HYPERVISOR, _RUNTIME = f"{_KATA}config.hypervisor.", f"{_KATA}config.runtime."
_OF_HYPERVISOR = frozenset(
    (
        *("default_maxmemory", "default_maxvcpus", "default_memory", "default_vcpus"),
        *("disable_vhost_net", "enable_hugepages", "memory_slots"),
        *("kernel_params", "machine_type", "pcie_root_port", "rx_rate_limiter_max_rate"),
        *("shared_fs", "tx_rate_limiter_max_rate", "virtio_fs_cache", "virtio_fs_extra_args"),
    )
)
_OF_RUNTIME = frozenset(("disable_guest_seccomp", "internetworking_model"))
"""Not `disable_new_netns`: only the host's administrator may ignore the platform's network."""
_MOST_SERVERS, _MOST_WORDS, _WORD_CHARACTERS = 16, 64, 256
_LEAST_CPUS = 0.25
_MIB = 1 << 20
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)(i?b)?", re.IGNORECASE)
_UNITS = " kmgtp"
_WORD = re.compile(r"[!-~]+")  # what resolv.conf(5) has between its spaces


def configured(config: "Config", annotations: "Mapping[str, str]", log: "Log") -> "Config":
    """The configuration of a sandbox with these annotations. Raises BundleError."""
    hypervisor, runtime = _of_kata(config, annotations, log)
    name, text = _own(annotations, "sandbox_cpu")
    if name:
        hypervisor["default_vcpus"] = name, _cpus(name, text)
    name, text = _own(annotations, "sandbox_mem")
    if name:
        hypervisor["default_memory"] = name, _memory(name, text)
    if not hypervisor and not runtime:
        return config
    from tapwright.config import conflicts
    from tapwright.config.reading import overridden

    try:
        changed = overridden(config, "hypervisor.qemu", hypervisor)
        changed = overridden(changed, "runtime", runtime)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if found := conflicts(changed):
        raise BundleError(f"annotations: {'; '.join(found)}")
    return changed


def disable_guest_seccomp(config: "Config", annotations: "Mapping[str, str]") -> bool:
    """Whether a sandbox's annotations turn seccomp off. Members of a pod use no other annotation of
    the sandbox."""
    name = f"{_RUNTIME}disable_guest_seccomp"
    if name not in annotations:
        return config.runtime.disable_guest_seccomp
    return bool(_value(config, name, "disable_guest_seccomp", annotations[name]))


def dns(annotations: "Mapping[str, str]") -> "Json | None":
    """The guest's resolv.conf by the annotation `sandbox_dns`, in the form of a CNI result:
    nameservers, domain, search, options. None without the annotation. Raises BundleError."""
    name, text = _own(annotations, "sandbox_dns")
    if not name:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(name, text, f"JSON: {error}") from None
    if not isinstance(content, dict):
        raise _refusal(name, text, 'an object: {"Servers": […], "Domain", "Searches", "Options"}')
    # As Go reads it, without regard to case.
    fields = {key.lower(): value for key, value in content.items() if value}
    domain = fields.get("domain", "")
    words = [domain] if domain else []
    found = {
        "nameservers": _words(name, "Servers", fields.get("servers", []), _MOST_SERVERS),
        "domain": "".join(_words(name, "Domain", words, 1)),
        "search": _words(name, "Searches", fields.get("searches", []), _MOST_WORDS),
        "options": _words(name, "Options", fields.get("options", []), _MOST_WORDS),
    }
    import ipaddress

    for server in found["nameservers"]:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise _refusal(f"{name}: Servers", server, "an IPv4 or IPv6 address") from None
    return found


def resolv_conf_mount(annotations: "Mapping[str, str]", mounts: "list[Json]") -> "list[Json]":
    """A mount of the guest's resolv.conf for a container without one of its own, if the sandbox's
    annotations configure it; otherwise an empty list."""
    place = "/etc/resolv.conf"
    if not _own(annotations, "sandbox_dns")[0]:
        return []
    if any(mount["destination"] == place for mount in mounts):
        return []
    options = ["bind", "ro"]
    return [{"destination": place, "type": "bind", "source": place, "options": options}]


def _of_kata(
    config: "Config", annotations: "Mapping[str, str]", log: "Log"
) -> "tuple[dict[str, tuple[str, Any]], dict[str, tuple[str, Any]]]":
    """Values for the sections of the hypervisor and of the runtime: (annotation, value) by key."""
    found: tuple[dict[str, tuple[str, Any]], dict[str, tuple[str, Any]]] = {}, {}
    for name, text in annotations.items():
        for prefix, known, values in (
            (_HYPERVISOR, _OF_HYPERVISOR, found[0]),
            (_RUNTIME, _OF_RUNTIME, found[1]),
        ):
            if not name.startswith(prefix):
                continue
            _check_text(name, text)
            key = name.removeprefix(prefix)
            if prefix == _HYPERVISOR and not _is_enabled(config.qemu.enable_annotations, key):
                raise BundleError(
                    f"annotation {name} is not enabled: [hypervisor.qemu] enable_annotations must "
                    f"have {key!r}"
                )
            if key not in known:
                log.warn(f"annotation {name} is passed over: there is nothing here to set by it")
            elif text or key != "kernel_params":
                values[key] = name, _value(config, name, key, text)
    return found


def _is_enabled(patterns: "tuple[str, ...]", key: str) -> bool:
    """Whether one of the patterns allows the key. As in Kata, each is a regular expression that may
    match any part; an invalid one matches nothing."""
    for pattern in patterns:
        try:
            if re.search(pattern, key):
                return True
        except re.error:
            continue
    return False


def _value(config: "Config", name: str, key: str, text: str) -> "Any":
    """The value that a configuration file would have."""
    if key == "kernel_params":
        return f"{config.qemu.kernel_params} {text}".strip()
    if key == "default_vcpus":
        return _cpus(name, text)
    if key == "virtio_fs_extra_args":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _refusal(name, text, f"a list in JSON: {error}") from None
    default = getattr(config.qemu if key in _OF_HYPERVISOR else config.runtime, key)
    if isinstance(default, bool):
        if text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise _refusal(name, text, "true or false")
        return text.lower() in ("true", "t", "1")
    if isinstance(default, int):
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise _refusal(name, text, "a whole number")
        return int(text)
    return text


def _own(annotations: "Mapping[str, str]", key: str) -> tuple[str, str]:
    """(name, value) of one of openEuler's annotations; empty strings without it."""
    for prefix in (_VIRTCONTAINERS, _KATA):
        if (name := prefix + key) in annotations:
            _check_text(name, annotations[name])
            return name, annotations[name]
    return "", ""


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refusal(name, value, "a string")


def _cpus(name: str, text: str) -> int:
    """A number of CPUs, rounded up; no more than the host has."""
    most = len(os.sched_getaffinity(0))
    fits = re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text)
    if not fits or not _LEAST_CPUS <= float(text) <= most:
        raise _refusal(name, text, f"a number of CPUs from {_LEAST_CPUS} to {most}, the host's")
    return math.ceil(float(text))


def _memory(name: str, text: str) -> int:
    """MiB, from bytes, or a number with a unit as docker takes it (2g, 512MiB)."""
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 20:
        raise _refusal(name, text, "bytes, or a number with a unit such as 512m or 2g")
    return int(float(match[1]) * 1024 ** _UNITS.index(match[2].lower() or " ")) // _MIB


def _words(name: str, field: str, found: object, most: int) -> list[str]:
    if not isinstance(found, list) or len(found) > most:
        raise _refusal(f"{name}: {field}", found, f"a list of {most} at most")
    for word in found:
        fits = isinstance(word, str) and len(word) <= _WORD_CHARACTERS and _WORD.fullmatch(word)
        if not fits:
            raise _refusal(f"{name}: {field}", word, "a word without spaces")
    return found


def _refusal(name: str, value: object, rule: str) -> BundleError:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else shown[:200] + "…"
    return BundleError(f"annotation {name}: {shown} is refused: it must be {rule}")
