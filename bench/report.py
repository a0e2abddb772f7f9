"""docs/performance.md, made of the data of one run.

What is written here must be true on every machine: figures, and whether an aim is met, come from
the data alone.
"""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from bench import plots, tables
from bench.carrying import Carrying
from bench.machine import MachineFacts
from bench.platforms import SPARED
from bench.samples import median

Data = dict[str, Any]
"""The parts of a run that were measured, by name, and what it was run on, `machine` and `run`."""

_COLUMNS = 100

_HEAD = """# Performance

All figures are of one run of `scripts/bench`, which has written this page; the data are in
[performance.json](performance.json). In a run the variants of a measurement take turns, so their
ratios can be relied on; figures of different runs are not to be compared. A value is the median,
in brackets the quartiles: half of the values are between them.

{machine}

Each part can be run alone: `scripts/bench --only starts`; its module says what it does.
"""

_STARTS = """## Start to first ping

From the fork of the command (or the call) to the first answer to a ping, on a CNI network of the
reference plugins bridge and host-local, and back to nothing. A ping is an ICMP echo request sent
every 2 ms from the bridge's namespace, over a socket that is open already.

{table}

![From nothing to the first ping](performance/starts.svg)

*Bare QEMU* is the floor: the same template, its memory filled already, a TAP in a bridge; one
process does by hand only what must be done, without confinement, journal and CNI. *Beside another
sandbox* the template's memory is taken over from that one; *alone* it is read from the disk, and
checked. *Booted* is the same guest, with the same network, and no template. A supervisor *started
ahead* (`sandbox.launching.Launch`) has loaded its modules before it is told of its sandbox. A
*spare* ([what it is](configuration.md#spares)) is there already, and a second one, so that none is
made meanwhile.
"""

_STEPS = """### Where the time goes

`sandbox run` beside another sandbox; the steps that overlap run side by side (medians of each, so
they need not add up exactly). `--json` and `sandbox inspect` tell those of every sandbox as
`phases`.

{table}

![Where the time of a start goes](performance/steps.svg)

The floor's own steps, for comparison:

{floor}

The library saves the start of an interpreter and its imports, {library:.0f} ms; a supervisor that
was started ahead {ready:.0f} ms more. What it takes more than the floor then, {above:.0f} ms, is
the namespace, the CNI plugins (which run while QEMU starts), the journal, which is written through
to the disk before anything is made, and the joining of the interfaces.
"""

_SPARE_STEPS = """With a spare, `sandbox run` takes:

{table}
"""

_DELETES = """## Deleting a sandbox

From the fork of `sandbox delete` (or the call) until nothing is left: no process, namespace,
interface, lease, or file. The kernel takes the interfaces of a namespace away in its own time, also
after the command's end.

{table}
"""

_CROWD = """## Many sandboxes

One more start, to the first ping, with so many sandboxes there already; measured on the way up and
on the way down again. With none there, the template's memory is read from the disk.

{table}

![First ping over the number of sandboxes](performance/crowd.svg)

With {most} of them at once, {answered} answered a ping. When they were deleted, {left}. One
command that deletes many takes {delete:.0f} ms for each.

### Starts per second

{batch} sandboxes by `sandbox run`, some of them at once, until all have answered a ping:

{together}

And {many}, two at once; with spares each start makes the next one meanwhile:

{sustained}
"""

_MEMORY = """## Memory of a sandbox

One more sandbox beside {beside} others, with a guest of {guest} MiB, a network monitor, and one
network, all from the same template and idle. The proportional share counts a page that N processes
have mapped as one N-th; the pages of the template that no guest has written to are shared by all
of them.

{table}

Beside it there is the template's memory, once for all: {template:.0f} MiB, of which the shares
above contain what the guests have mapped.
"""

_COMMAND_START = """## The command's own start

{table}

`python3` is the interpreter itself, isolated and without site-packages of the user; the command
runs with those of its virtual environment.
"""

_HOTPLUG = """## Plugging a NIC into a running VM

A TAP on a Linux bridge, from asking for it to the first ping, and from asking for its end to that:

{table}

`bare` does by hand, in one process, only what must be done; `library` asks a running sandbox over
its control socket; `command` is `tapwright kata-network`. Of the time to remove, much is QEMU's
own: it tells of the end of a device when its threads have let go of it.
"""

_NETMON = """## Following the namespace

A veth whose other end is in a Linux bridge, from coming up in the namespace to the first ping that
the guest answers; the namespace's own stack is kept from answering.

{table}
"""

_CARRYING = """## Carrying routes, rules and settings

With the network monitor, until the guest is what the namespace is:

{table}
"""

_CNI = """## Running CNI networks

Bridge, host-local and tuning. `bare` executes the plugins with input that was made before;
`library` is `Runtime` in one process; `command` is `tapwright cni`; `cnitool` is there where it is
installed.

{table}

`at once` is {threads} threads of one process.
"""

_ENDPOINTS = """## Models and endpoints

A sandbox for each row; TCP each way, the guest's end being busybox's `nc`, and the round trip of
pings one after another. Ratios are to a TAP straight in a bridge.

{table}

![TCP to the guest](performance/models.svg)

Under software emulation the guest is the bottleneck, so the models differ by little. The existing
TAP is made by `ip tuntap add`, without `vnet_hdr`: no segmentation or checksum offload passes such
a TAP. `vhost-user` is not in the table: Open vSwitch's own polling takes a whole core.
"""

_PLATFORMS = """## Containers

On podman, by turns with runc on the same podman, a network with a bridge of its own, and an image
of busybox; without spares, and with one (and a second, so that none is made meanwhile):

{calls}
{parts}
### Files in a container

A file of {mib} MiB written, with fsync, and read while it is in the host's page cache, and small
files made by a shell; on the host, in a directory of the same filesystem:

{files}

### Memory of a container

A web server that is idle, its network monitor with it; in the last column one more container in
the same pod, in the same guest. The proportional share of each process:

{memory}
"""


_PARTS = """
Of `podman exec`, {guest:.0f} ms are the guest's: crun and the process itself, from the request to
the supervisor until that tells of the end. A call of the runtime that does little, `state`, takes
{state:.0f} ms, and of these an empty interpreter {interpreter:.0f} ms. `podman run --rm` calls the
runtime three times (`create`, `start`, `delete`), and `podman exec` once; what podman and conmon do
themselves is in the column of runc, too.
"""


_SOAK = """## Do transfers stand still?

{text}

{table}
"""


class Aim(NamedTuple):
    """What was aimed at: at most `limit`, or at `least`. The remark is for when it is missed."""

    what: str
    limit: float
    unit: str
    measured: float
    remark: str
    least: bool = False

    @property
    def is_met(self) -> bool:
        return self.measured >= self.limit if self.least else self.measured <= self.limit


def markdown(data: Data) -> str:
    """The page. Parts that were not measured are not in it."""
    machine = cast(MachineFacts, data["machine"])
    sections = [
        _HEAD.format(machine=_machine(machine, data["run"])),
        _aims_section(aims(data)),
        *(section(data[part]) for part, section in _SECTIONS.items() if part in data),
    ]
    return "\n".join(sections)


def pictures(data: Data) -> dict[str, str]:
    """The SVG files beside the page, by name."""
    found: dict[str, str] = {}
    if "starts" in data:
        found["starts.svg"] = plots.starts(data["starts"])
        found["steps.svg"] = plots.steps(data["starts"], ("floor", "ready", "library", "command"))
    if "crowd" in data:
        found["crowd.svg"] = plots.crowd(data["crowd"])
    if "endpoints" in data:
        found["models.svg"] = plots.models(data["endpoints"])
    return found


def aims(data: Data) -> list[Aim]:
    """Those that the data tell of."""
    found = []
    if "starts" in data:
        found += _start_aims(data["starts"])
    if "crowd" in data:
        found += _crowd_aims(data["crowd"])
    if "platforms" in data:
        found += _platform_aims(data["platforms"])
    if "memory" in data:
        memory = data["memory"]
        largest = max(memory["share"], key=lambda kind: median(memory["share"][kind]))
        found.append(
            Aim(
                f"one more sandbox beside {memory['beside']} others",
                80,
                "MiB",
                tables.total(memory["share"]),
                f"most of it is {largest}; [by process](#memory-of-a-sandbox).",
            )
        )
    if "scrape" in data:
        found.append(_scrape_aim(data["scrape"]))
    if "carrying" in data:
        found += _carrying_aims(data["carrying"])
    if "command_start" in data:
        start = data["command_start"]
        version, python = median(start["version"]), median(start["python"])
        found.append(
            Aim(
                "`tapwright --version`, to `python3 -I -c pass`",
                2,
                "times",
                version / python,
                f"the interpreter takes {python:.0f} ms, and site-packages of the virtual "
                f"environment, argparse and our own modules {version - python:.0f} ms more.",
            )
        )
    return found


def _scrape_aim(scrape: Data) -> Aim:
    one, many = median(scrape["one"]), median(scrape["processor"])
    return Aim(
        f"a scrape of {scrape['sandboxes']} sandboxes, {scrape['series']} series, processor time",
        100,
        "ms",
        many,
        f"it is {many / one:.0f} times that of one sandbox ({one:.1f} ms).",
    )


def _carrying_aims(data: Carrying) -> list[Aim]:
    remark = "[what that is](#carrying-routes-rules-and-settings)."
    return [
        Aim(f"{data['changes']} mixed changes, after the last", 1000, "ms", data["mixed"], remark),
        Aim(f"{data['routes']} routes at once", 1000, "ms", data["came"], remark),
    ]


def _start_aims(starts: Data) -> list[Aim]:
    pinged = {kind: median(found["pinged"]) for kind, found in starts["variants"].items()}
    command, ready, floor = (pinged[kind] for kind in ("command", "ready", "floor"))
    gone, done = (median(starts["deletes"]["command"][key]) for key in ("gone", "done"))
    details = "[where the time goes](#where-the-time-goes) has the steps"
    spared = [
        Aim(
            f"{what}, to bare restore",
            aim,
            "times",
            pinged[kind] / floor,
            "what takes the time is in [where the time goes](#where-the-time-goes).",
        )
        for kind, what, aim in (
            ("spare_library", "library with a spare", 0.25),
            ("spare", "`sandbox run` with a spare", 0.45),
        )
    ]
    return [
        *spared,
        Aim(
            "`sandbox run`, to the first ping",
            350,
            "ms",
            command,
            f"{floor:.0f} ms of it are the floor; {details}.",
        ),
        Aim(
            "library in a warm process, its supervisor started ahead, to the first ping",
            250,
            "ms",
            ready,
            f"{floor:.0f} ms of it are the floor; {details}.",
        ),
        Aim(
            "a booted guest, to `sandbox run` with a spare",
            25,
            "times",
            pinged["cold"] / pinged["spare"],
            f"booting takes {pinged['cold']:.0f} ms, and `sandbox run` without a spare is "
            f"{pinged['cold'] / command:.1f} times as quick.",
            least=True,
        ),
        Aim(
            "`sandbox delete`, until nothing is left",
            60,
            "ms",
            gone,
            f"the command itself takes {done:.0f} ms; the rest is the kernel's.",
        ),
    ]


def _crowd_aims(crowd: Data) -> list[Aim]:
    """Against the quicker of the first two: the very first has to read the template's memory."""
    last, sustained = crowd["levels"][-1], crowd["sustained"]
    found = []
    for key, what in (("command", "`sandbox run`"), ("spare", "`sandbox run` with a spare")):
        first = min(median(level[key]) for level in crowd["levels"][:2])
        found.append(
            Aim(
                f"{what}, {last['present']} sandboxes there, to the first",
                1.15,
                "times",
                median(last[key]) / first,
                "[the numbers between](#many-sandboxes) tell how it grows.",
            )
        )
    found.append(
        Aim(
            f"{sustained['count']} starts, two at once, with a spare",
            5,
            "a second",
            median(sustained["spare"]),
            "each start makes a spare for the next, which takes a processor as long as a restore "
            "does; [the table](#starts-per-second) has both.",
            least=True,
        )
    )
    return found


def _platform_aims(platforms: Data) -> list[Aim]:
    calls, parts = platforms["calls"], platforms.get("parts")
    figures = "[the figures](#containers)"
    remarks = dict.fromkeys(("true", "answer", "exec"), f"{figures}.")
    if parts:
        state = median(parts["state"])
        remarks |= {
            "true": f"three calls of the runtime, of which one that does little takes {state:.0f} "
            f"ms, and the guest's work; {figures}.",
            "answer": f"two calls of the runtime, of which one that does little takes {state:.0f} "
            f"ms, and the guest's work; {figures}.",
            "exec": f"{median(parts['guest']):.0f} ms of it are the guest's, and a call of the "
            f"runtime that does little takes {state:.0f} ms; {figures}.",
        }
    return [
        Aim(
            f"{what} with a spare, to runc",
            aim,
            "times",
            median(calls[SPARED][key]) / median(calls["runc"][key]),
            remarks[key],
        )
        for key, what, aim in (
            ("true", "`podman run --rm` of `true`", 1.7),
            ("answer", "`podman run` to the first HTTP answer", 2),
            ("exec", "`podman exec` of `true`", 1.2),
        )
    ]


def _aims_section(found: list[Aim]) -> str:
    rows = [
        [
            aim.what,
            f"{'≥' if aim.least else '≤'} {aim.limit:g} {aim.unit}",
            f"{aim.measured:.{0 if aim.unit in ('ms', 'MiB') else 2}f} {aim.unit}",
            "yes" if aim.is_met else "**no**",
        ]
        for aim in found
    ]
    text = f"## Aims\n\n{tables.table(('', 'aim', 'measured', 'met'), rows)}\n"
    if missed := [aim for aim in found if not aim.is_met]:
        text += "\nOf those that are not met:\n\n"
    for aim in missed:
        remark = f"- {aim.what}: {aim.remark}"
        text += _filled(remark, "  ") + "\n"
    return text


def _filled(text: str, indent: str = "") -> str:
    # A link that is broken at a hyphen leads nowhere.
    return textwrap.fill(text, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def _machine(facts: MachineFacts, run: Data) -> str:
    accelerator = {"tcg": "software emulation (TCG)", "kvm": "KVM"}
    text = (
        f"Measured on {facts['cores']} cores ({facts['processor']}), "
        f"{facts['memory_mib'] / 1024:.0f} GiB, {facts['system']}, Linux {facts['kernel']}, "
        f"Python {facts['python']}, QEMU {facts['qemu']} with "
        f"{accelerator.get(facts['accelerator'], facts['accelerator'])}, "
        f"containernetworking-plugins {facts['plugins']}; in {run['seconds']:.0f} s."
    )
    if run["quick"]:
        text += " *This was a quick run, to see that it works: its figures are of few samples.*"
    return _filled(text)


def _starts(data: Any) -> str:
    middle = {kind: median(found["pinged"]) for kind, found in data["variants"].items()}
    steps = _STEPS.format(
        table=tables.steps(data, "command"),
        floor=tables.steps(data, "floor"),
        library=middle["command"] - middle["library"],
        ready=middle["library"] - middle["ready"],
        above=middle["ready"] - middle["floor"],
    )
    start, end = _STARTS.format(table=tables.starts(data)), tables.deletes(data)
    spare = _SPARE_STEPS.format(table=tables.steps(data, "spare"))
    return "\n".join((start, steps, spare, _DELETES.format(table=end)))


def _crowd(data: Any) -> str:
    left = ", ".join(data["left"])
    return _CROWD.format(
        table=tables.crowd(data),
        most=data["most"],
        answered="all" if data["answered"] == data["most"] else f"only {data['answered']}",
        left=f"there was left: {left}" if left else "nothing was left",
        delete=data["delete"],
        batch=data["batch"],
        together=tables.together(data),
        many=data["sustained"]["count"],
        sustained=tables.sustained(data),
    )


def _memory(data: Any) -> str:
    numbers = {key: data[key] for key in ("beside", "guest", "template")}
    return _MEMORY.format(table=tables.memory(data), **numbers)


def _platforms(data: Any) -> str:
    return _PLATFORMS.format(
        calls=tables.platform_calls(data),
        parts=_parts(data.get("parts")),
        mib=data["mib"],
        files=tables.platform_files(data),
        memory=tables.platform_memory(data),
    )


def _parts(data: Any) -> str:
    """Empty for a run of before these were measured."""
    if not data:
        return ""
    return _PARTS.format(**{part: median(samples) for part, samples in data.items()})


def _soak(data: Any) -> str:
    text = (
        f"On {data['date']}, in a run of its own (`scripts/soak`), {data['transfers']} TCP "
        f"transfers of up to {data['longest']:g} s went to and from {data['sandboxes']} sandboxes, "
        f"some of them at once, in {data['seconds']} s; {data['megabytes']} MB together. Meanwhile "
        f"{data['busy']} other process only computed. {data['stood_still']} had no byte for "
        f"{data['gap']:g} s or more, {data['failed']} failed."
    )
    return _SOAK.format(text=_filled(text), table=tables.soak(data))


_SECTIONS: dict[str, Callable[[Any], str]] = {
    "starts": _starts,
    "crowd": _crowd,
    "memory": _memory,
    "platforms": _platforms,
    "command_start": lambda data: _COMMAND_START.format(table=tables.command_start(data)),
    "hotplug": lambda data: _HOTPLUG.format(table=tables.hotplug(data)),
    "netmon": lambda data: _NETMON.format(table=tables.netmon(data)),
    "carrying": lambda data: _CARRYING.format(table=tables.carrying(data)),
    "cni": lambda data: _CNI.format(table=tables.cni(data), threads=data["threads"]),
    "endpoints": lambda data: _ENDPOINTS.format(table=tables.endpoints(data)),
    "soak": _soak,
}
