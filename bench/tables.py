"""The tables of docs/performance.md: one function for each part's data, from which follows all that
is in them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.carrying import Carrying
from bench.cni import Cni
from bench.command_start import CommandStart
from bench.crowd import Crowd
from bench.endpoints import Model
from bench.hotplug import Hotplug
from bench.memory import Memory
from bench.netmon import Netmon
from bench.platforms import HOST, SPARED, Platforms
from bench.pods import Measured, Parts
from bench.samples import Samples, median, summary
from bench.soak import Soaked
from bench.starts import Starts

VARIANTS = {
    "floor": "bare QEMU, by hand",
    "spare_library": "library, in a warm process, with a spare",
    "spare": "`sandbox run`, with a spare",
    "ready": "library, in a warm process, its supervisor started ahead",
    "library": "library, in a warm process",
    "command": "`sandbox run`, beside another sandbox",
    "alone": "`sandbox run`, alone on the host",
    "cold": "`sandbox run`, booted",
}
"""The ways to start, in the order in which they are shown."""

STEPS = {
    "command": "start the command: interpreter, arguments",
    "plan": "imports and planning; the supervisor is started, and loads what it can",
    "before": "imports, planning, start the supervisor",
    "after": "control socket, record, answer, exit",
    "accelerator": "choose KVM or emulation",
    "namespace": "make the namespace",
    "template": "find the template, take over its memory, start QEMU on it",
    "modules": "the supervisor loads the rest",
    "memory": "take over its memory, or read it",
    "spare": "the spare's agent gets a new seed",
    "qemu": "start QEMU",
    "restore": "wait until the guest runs again",
    "agent": "the guest's agent answers",
    "boot": "the guest boots and answers",
    "join": "scan the namespace, make endpoints, plug NICs",
    "plug": "plug the NIC",
    "guest": "the guest configures the NIC",
    "ping": "the first ping",
}
"""What happens in a step of that name."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ms(values: Samples) -> str:
    """The median, and between what half of the values are."""
    found = summary(values)
    return f"{found.median:.1f} ({found.low:.1f} to {found.high:.1f})"


def ratio(values: Samples, base: Samples) -> str:
    return f"{median(values) / median(base):.2f}"


def starts(data: Starts) -> str:
    floor = data["variants"]["floor"]["pinged"]
    rows = [
        [
            label,
            ratio(found["pinged"], floor),
            ms(found["pinged"]),
            ms(found["done"]),
            str(len(found["done"])),
        ]
        for kind, label in VARIANTS.items()
        if (found := data["variants"].get(kind))
    ]
    return table(("", "to bare", "first ping, ms", "returned, ms", "starts"), rows)


def steps(data: Starts, kind: str) -> str:
    """The steps of one way to start; those beside each other overlap."""
    found = data["variants"][kind]
    rows = [
        [_step(name, kind), f"{begun:.0f}", f"{length:.0f}"]
        for name, begun, length in steps_from_fork(data, kind)
    ]
    rows.append(["**answers a ping**", f"{median(found['pinged']):.0f}", ""])
    return table(("", "from, ms", "takes, ms"), rows)


def steps_from_fork(data: Starts, kind: str) -> list[tuple[str, float, float]]:
    """The steps, with what comes between the command's start and the first of the sandbox's, and
    after the last of them."""
    found = data["variants"][kind]
    command = [step for step in found["steps"] if step[0] == "command"]
    known = [step for step in found["steps"] if step[0] != "command"]
    begun = sum(length for _, _, length in command)
    first = min(start for _, start, _ in known)
    last = max(start + length for _, start, length in known)
    done, pinged = median(found["done"]), median(found["pinged"])
    before = [("before", begun, first - begun)] if first > begun else []
    after = [] if kind == "floor" else [("after", last, done - last), ("ping", done, pinged - done)]
    return [*command, *before, *known, *after]


def _step(name: str, kind: str) -> str:
    if name.startswith("network "):
        return "the CNI chain"
    if name == "plan" and kind == "spare":
        return "imports and planning; a spare is taken"
    return STEPS.get(name, name)


def deletes(data: Starts) -> str:
    labels = {"command": "`sandbox delete`", "library": "library, in a warm process"}
    rows = [
        [label, ms(data["deletes"][kind]["gone"]), ms(data["deletes"][kind]["done"])]
        for kind, label in labels.items()
    ]
    return table(("", "nothing left, ms", "returned, ms"), rows)


def crowd(data: Crowd) -> str:
    base = next((level for level in data["levels"] if level["present"] == 1), data["levels"][0])
    rows = [
        [
            str(level["present"]),
            f"{median(level['busy']):.2f}",
            ratio(level["command"], base["command"]),
            ms(level["command"]),
            ratio(level["spare"], base["spare"]),
            ms(level["spare"]),
            ratio(level["library"], base["library"]),
            ms(level["library"]),
        ]
        for level in data["levels"]
    ]
    head = (
        *("present", "idle, processors"),
        *("to 1", "`sandbox run`, ms", "to 1", "with a spare, ms", "to 1", "library, ms"),
    )
    return table(head, rows)


def together(data: Crowd) -> str:
    base = data["together"][0]["per_second"]
    rows = [
        [
            str(found["at_once"]),
            ratio(found["per_second"], base),
            f"{median(found['per_second']):.2f}",
        ]
        for found in data["together"]
    ]
    return table(("at once", "to one", "starts a second"), rows)


def sustained(data: Crowd) -> str:
    found = data["sustained"]
    without, spare = found["without"], found["spare"]
    rows = [
        ["without spares", "1.00", f"{median(without):.2f}"],
        ["with one", ratio(spare, without), f"{median(spare):.2f}"],
    ]
    return table(("", "to without", "starts a second"), rows)


def memory(data: Memory) -> str:
    rows = [
        [kind, f"{median(data['share'][kind]):.1f}", f"{median(data['own'][kind]):.1f}"]
        for kind in data["share"]
    ]
    rows.append(["together", f"{total(data['share']):.1f}", f"{total(data['own']):.1f}"])
    return table(("", "proportional share, MiB", "its own alone, MiB"), rows)


def total(kinds: dict[str, Samples]) -> float:
    """The median over the sandboxes of what each has in all its processes."""
    return median(map(sum, zip(*kinds.values(), strict=True)))


def command_start(data: CommandStart) -> str:
    rows = [
        ["`python3 -I -c pass`", "1.00", ms(data["python"])],
        ["`tapwright --version`", ratio(data["version"], data["python"]), ms(data["version"])],
    ]
    return table(("", "to the interpreter", "ms"), rows)


def cni(data: Cni) -> str:
    bare = data["variants"]["bare"]
    rows = [
        [
            name,
            ratio(found["add"], bare["add"]),
            ms(found["add"]),
            ratio(found["delete"], bare["delete"]),
            ms(found["delete"]),
        ]
        for name, found in data["variants"].items()
    ]
    verbs = table(("", "ADD to bare", "ADD, ms", "DEL to bare", "DEL, ms"), rows)
    batches = [
        [name, f"{median(batch['seconds']):.2f}", f"{median(batch['cpu']):.2f}"]
        for name, batch in (("in turn", data["in_turn"]), ("at once", data["at_once"]))
    ]
    head = (f"{data['attachments']} ADDs", "s", "CPU s")
    return f"{verbs}\n\n{table(head, batches)}"


def hotplug(data: Hotplug) -> str:
    labels = {"bare": "bare QMP and agent", "library": "library", "command": "command"}
    bare = data["bare"]
    rows = [
        [
            label,
            ratio(data[kind]["plug"], bare["plug"]),
            ms(data[kind]["plug"]),
            ratio(data[kind]["unplug"], bare["unplug"]),
            ms(data[kind]["unplug"]),
        ]
        for kind, label in labels.items()
    ]
    head = ("", "to bare", "add to first ping, ms", "to bare", "remove, ms")
    return table(head, rows)


def netmon(data: Netmon) -> str:
    rows = [
        ["`add-iface` called by hand at that moment", "1.00", ms(data["by_hand"])],
        ["the network monitor", ratio(data["monitor"], data["by_hand"]), ms(data["monitor"])],
    ]
    pings = table(("", "to by hand", "until the first ping, ms"), rows)
    idle = [
        [kind, str(data["ticks"][kind]), f"{data['memory'][kind]:.1f}"] for kind in data["ticks"]
    ]
    head = ("idle", f"ticks in {data['idle_seconds']:g} s", "proportional share, MiB")
    return (
        f"{pings}\n\n{data['changes']} changes of addresses and routes, spread over one second: "
        f"the guest has all of them\n{data['burst']:.0f} ms after the last one.\n\n"
        f"{table(head, idle)}"
    )


def carrying(data: Carrying) -> str:
    rows = [
        [
            f"{data['changes']} changes, spread over one second: routes that come and go, rules, "
            "settings; after the last",
            f"{data['mixed']:.0f}",
        ],
        [f"{data['routes']} routes that come at once", f"{data['came']:.0f}"],
        ["and go at once", f"{data['went']:.0f}"],
        [f"{data['too_many']} routes: refused, with words", f"{data['refused']:.0f}"],
    ]
    return table(("", "ms"), rows)


def endpoints(data: list[Model]) -> str:
    base = data[0]
    rows = [
        [
            found["name"],
            *_value_and_ratio(found["to_guest"], base["to_guest"]),
            *_value_and_ratio(found["from_guest"], base["from_guest"]),
            *_value_and_ratio(found["round_trip"], base["round_trip"]),
        ]
        for found in data
    ]
    head = ("", "to the guest", "Mbit/s", "from it", "Mbit/s", "round trip", "µs")
    return table(head, rows)


def soak(data: Soaked) -> str:
    rows = [[kind, *map(str, counts)] for kind, counts in data["ends"].items()]
    return table(("", "to the guest", "from it"), rows)


def _value_and_ratio(values: Samples, base: Samples) -> tuple[str, str]:
    return ratio(values, base), f"{median(values):.0f}"


def platform_calls(data: Platforms) -> str:
    labels = {
        "true": "`podman run --rm` of `true`, ms",
        "answer": "`podman run` to the first HTTP answer, ms",
        "exec": "`podman exec` of `true`, ms",
    }
    return _against_runc(data["calls"], labels)


_POD_CALLS = {
    "sandbox": "`RunPodSandbox`",
    "container": "`CreateContainer` and `StartContainer`",
    "exec": "`ExecSync` of `true`",
    "removal": "`StopPodSandbox` and `RemovePodSandbox`",
}


def pods(data: Measured) -> str:
    return _against_runc(data, {key: f"{label}, ms" for key, label in _POD_CALLS.items()})


def pod_parts(data: Parts) -> str:
    rows = [
        [
            label,
            ", ".join(
                f"`{verb}`" if count == 1 else f"`{verb}` {count} times"
                for verb, count in Counter(data["verbs"][key]).items()
            ),
            ms(data["calls"][key]),
        ]
        for key, label in _POD_CALLS.items()
    ]
    return table(("", "calls of the runtime", "together, ms"), rows)


def pod_steps(data: Parts) -> str:
    rows = [[STEPS[step], ms(values)] for step, values in data["steps"].items()]
    return table(("", "takes, ms"), rows)


def _against_runc(calls: Any, labels: Mapping[str, str]) -> str:
    """A row for each label's key, which each of the runtimes' samples have."""
    rows = [
        [
            label,
            ms(calls["runc"][key]),
            ms(calls["tapwright"][key]),
            ratio(calls["tapwright"][key], calls["runc"][key]),
            ms(calls[SPARED][key]),
            ratio(calls[SPARED][key], calls["runc"][key]),
        ]
        for key, label in labels.items()
    ]
    return table(("", "runc", "without a spare", "to runc", "with a spare", "to runc"), rows)


def platform_files(data: Platforms) -> str:
    host = data["files"][HOST]
    rows = [
        [
            name,
            *_value_and_ratio(found["write"], host["write"]),
            *_value_and_ratio(found["read"], host["read"]),
            *_value_and_ratio(found["small"], host["small"]),
        ]
        for name, found in data["files"].items()
    ]
    head = ("", "to the host", "write, MiB/s", "to the host", "read, MiB/s", "to the host")
    return table((*head, "a small file, µs"), rows)


def platform_memory(data: Platforms) -> str:
    columns = [data["container"]["runc"], data["container"]["tapwright"], data["more"]]
    kinds = list(dict.fromkeys(kind for column in columns for kind in column))
    rows = [
        [kind, *(f"{column[kind]:.1f}" if kind in column else "" for column in columns)]
        for kind in kinds
    ]
    rows.append(["together", *(f"{sum(column.values()):.1f}" for column in columns)])
    return table(("MiB", "runc", "Tapwright", "one more in its pod"), rows)
