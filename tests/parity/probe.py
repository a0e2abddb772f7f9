"""Tells what a program sees of the network where this runs, as JSON. Run in a namespace of the host
and in a guest: with the words that `ip` is called by, names of interfaces, and paths of settings
below /proc/sys/net, all as JSON in a line of its stdin. Each line has its answer, a line too."""

import json
import os
import subprocess
import sys

ROOT = "/proc/sys/net"


def answers(program: list[str], *commands: str) -> list[list[dict[str, object]]]:
    """What `ip` shows, called once for several commands if it answers each of them."""
    done = subprocess.run(
        [*program, "-N", "-d", "-j", "-force", "-batch", "-"],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        check=False,
    )
    found, text, decoder = [], done.stdout.strip(), json.JSONDecoder()
    while text:
        value, end = decoder.raw_decode(text)
        found.append([entry for entry in value if entry])
        text = text[end:].strip()
    if len(found) == len(commands):
        return found
    if len(commands) == 1:
        return [[]]
    return [answer for command in commands for answer in answers(program, command)]


def read(path: str) -> str | None:
    try:
        with open(f"{ROOT}/{path}") as file:
            return file.read().strip()
    except OSError:
        return None


def of_interface(name: str) -> dict[str, str | None]:
    found = {}
    for place in ("ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"):
        directory = f"{place}/{name}"
        if os.path.isdir(f"{ROOT}/{directory}"):
            for setting in sorted(os.listdir(f"{ROOT}/{directory}")):
                found[f"{directory}/{setting}"] = read(f"{directory}/{setting}")
    return found


ASKED: tuple[tuple[list[str], dict[str, str]], ...] = (
    (
        [],
        {
            "links": "link show",
            "addresses": "address show",
            "neighbours": "neigh show nud permanent",
            "proxies": "neigh show proxy",
            "groups": "maddress show",
            "nexthops": "nexthop show",
        },
    ),
    (["-4"], {"routes": "route show table all", "rules": "rule show"}),
    (["-6"], {"routes6": "route show table all", "rules6": "rule show"}),
)


def told(wanted: dict[str, list[str]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for words, asked in ASKED:
        found = answers([*wanted["ip"], *words], *asked.values())
        result |= dict(zip(asked, found, strict=True))
    settings = {path: read(path) for path in wanted["settings"]}
    for name in wanted["interfaces"]:
        settings |= of_interface(name)
    return {**result, "settings": settings}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(told(json.loads(line))), flush=True)
