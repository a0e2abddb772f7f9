"""The fields of each request, with their types. A request is checked before anything is done, so
the code that does it can rely on the fields, and any other error is a bug of the agent."""

from typing import Any

from tapwright import shapes

Request = dict[str, Any]

_CONTAINER = {"id": str}
_NEEDED: dict[str, dict[str, Any]] = {
    "accept_socket": {"number": int},
    "batch": {"requests": list[dict[str, object]]},
    "change_files": {"paths": list[str]},
    "change_kernel_settings": {"settings": list[list[str]]},
    "change_settings": {"settings": list[list[str]]},
    "close_socket": {"number": int},
    "cover_sockets": {"shown": dict[str, int], "hidden": list[str]},
    "exec": {"argv": list[str]},
    "forget_files": {"places": list[str]},
    "forward": {"family": int, "port": int},
    "listen_socket": {
        "kind": str,
        **dict.fromkeys(("number", "mode", "uid", "gid"), int),
    },
    "mirror_files": {"place": str},
    "replay": {"messages": str},
    "resolve": {"address": str},
    "set_clock": {"seconds": float},
    "set_hostname": {"hostname": str},
    "set_interface": {"mac": str},
    "set_machine_id": {"machine_id": str},
    "set_sysctls": {"sysctls": list[list[str]]},
    "create_container": {**_CONTAINER, "config": dict},
    "exec_container": {**_CONTAINER, "process": dict},
    "signal_container": {**_CONTAINER, "signal": int},
    "update_container": {**_CONTAINER, "resources": dict},
    **dict.fromkeys(
        (
            *("start_container", "pause_container", "resume_container", "delete_container"),
            *("container_processes", "container_statistics"),
        ),
        _CONTAINER,
    ),
}
_TEXTS = list[str] | None
# Fields that may be missing. Flags are not listed: a flag may be anything.
_OPTIONAL: dict[str, dict[str, Any]] = {
    "change_routes": {"remove": list[dict[str, object]], "add": list[dict[str, object]]},
    "exec": {"env": dict[str, str], "cwd": str | None},
    "resolve": {"ports": list[int]},
    "set_dns": {
        **dict.fromkeys(("nameservers", "search", "options"), _TEXTS),
        "domain": str | None,
    },
    "set_interface": {
        **dict.fromkeys(("addresses", "unwanted", "kept"), list[dict[str, object]]),
        **dict.fromkeys(("altnames", "unwanted_altnames"), list[str]),
        **dict.fromkeys(("name", "address"), str | None),
        **dict.fromkeys(("mtu", "txqlen", "queues"), int | None),
        "settings": list[list[str]],
    },
    "set_rulesets": {
        "ipsets": list[dict[str, object]],
        "tables": list[dict[str, object]],
        "unset": list[str],
    },
}


def mistake(request: dict[str, Any]) -> str:
    """Return what is wrong with a request, in words; empty for a valid request."""
    op = str(request.get("op"))
    optional = _OPTIONAL.get(op, {})
    shape = {key: kind for key, kind in optional.items() if key in request}
    if found := shapes.mistake(request, _NEEDED.get(op, {}) | shape):
        return f"{op}: {found}"
    items = request["requests"] if op == "batch" else ()
    return next(filter(None, map(mistake, items)), "")
