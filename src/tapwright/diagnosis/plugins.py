"""Says which CNI plugin made which interface of a sandbox, from CNI's cache (`cni.cache`)."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from tapwright import cni
from tapwright.cni import cache
from tapwright.state.record import Record


@dataclass
class Made:
    """One attachment. `plugins` are the types of the network's plugins in their order, `ipam` is
    the type of the IPAM plugin. `interfaces` are the names of the host's interfaces in the result,
    `gateways` the result's gateways, `dns` its name servers and search domains. `published` has
    (port of the host, port of the guest)."""

    network: str
    ifname: str
    plugins: list[str] = field(default_factory=list)
    ipam: str = ""
    interfaces: list[str] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    dns: dict[str, list[str]] = field(default_factory=dict)
    published: list[tuple[int, int]] = field(default_factory=list)

    @property
    def maker(self) -> str:
        """The plugin that makes the interface. It is the first of the chain; later ones change the
        interface."""
        return self.plugins[0] if self.plugins else ""


def attachments(record: Record) -> tuple[list[Made], list[str]]:
    """Return the attachments of a sandbox (its own, and those that a platform made for its
    namespace), and the entries of CNI's cache that can't be read, in words."""
    found: list[Made] = []
    problems: list[str] = []
    directories = dict.fromkeys(
        os.path.realpath(each) for each in (record.spec.cni_cache, cache.DEFAULT_DIRECTORY) if each
    )
    for directory in directories:
        try:
            entries, _ = cache.entries(directory)  # entries of other programs may be torn
        except cni.CniError as error:
            problems.append(str(error))
            continue
        for entry in entries:
            attached = entry.attachment
            if attached.container_id == record.id or _same(attached.netns, record.netns):
                found.append(_made(entry))
    return found, problems


def _same(one: str, other: str) -> bool:
    if not one or not other:
        return False
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def _made(entry: cache.Entry) -> Made:
    made = Made(entry.network, entry.attachment.ifname)
    try:
        config: Any = json.loads(entry.whole or entry.config)
    except ValueError:
        config = {}
    plugins = [one for one in _list(config, "plugins") if isinstance(one, dict)]
    made.plugins = [str(one.get("type", "?")) for one in plugins]
    if plugins and isinstance(ipam := plugins[0].get("ipam"), dict):
        made.ipam = str(ipam.get("type", ""))
    result = entry.result or {}
    made.interfaces = [
        str(one.get("name", "")) for one in _list(result, "interfaces") if not one.get("sandbox")
    ]
    made.gateways = [str(one["gateway"]) for one in _list(result, "ips") if one.get("gateway")]
    dns = result.get("dns")
    for key in ("nameservers", "search"):
        found = dns.get(key) if isinstance(dns, dict) else None
        made.dns[key] = [str(one) for one in found] if isinstance(found, list) else []
    made.published = [
        (one["hostPort"], one["containerPort"])
        for one in _list(entry.attachment.capability_args, "portMappings")
        if isinstance(one.get("hostPort"), int) and isinstance(one.get("containerPort"), int)
    ]
    made.ports = [
        f"{one.get('hostIP') or '*'}:{one.get('hostPort')} → {one.get('containerPort')}"
        f"/{one.get('protocol', 'tcp')}"
        for one in _list(entry.attachment.capability_args, "portMappings")
    ]
    return made


def _list(content: Any, key: str) -> list[dict[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
