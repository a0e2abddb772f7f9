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
_TIMES = {1: "once", 2: "twice"}

_HEAD = """# Performance

One run of `scripts/bench` measured all figures and wrote this page; the data are in
[performance.json](performance.json). In a run, the variants of a measurement take turns, so their
ratios are reliable; figures of different runs do not compare. A value is the median, and the
brackets have the quartiles: half of the values are between them.

{machine}

`scripts/bench --only starts` runs one part alone, and with `--replace` puts its figures into this
page; the docstring of its module says what it does.
"""

_STARTS = """## Start to first ping

The time from the fork of the command (or from the call) to the first answer to a ping. The CNI
network has the reference plugins bridge and host-local, and each sandbox is deleted before the next
start. A socket that is already open sends a ping (an ICMP echo request) every 2 ms from the
bridge's namespace.

{table}

![From nothing to the first ping](performance/starts.svg)

*Bare QEMU* is the floor: it has the same template, whose memory is already filled, and a TAP in a
bridge. One process does by hand only what a start needs, without confinement, journal or CNI.
*Beside another sandbox*, a sandbox takes over the template's memory from the other one; *alone*, it
reads the memory from the disk, and checks it. *Booted* is the same guest on the same network,
without a template. A supervisor *started ahead* (`sandbox.launching.Launch`) has loaded its modules
before it gets a sandbox. *With a spare*, two [spares](configuration.md#spares) are ready before the
start, so Tapwright makes none during it.
"""

_STEPS = """### Where the time goes

The steps of `sandbox run` beside another sandbox. Steps that overlap run side by side. Each figure
is a median, so the sums are not exact. `--json` and `sandbox inspect` show the steps of each
sandbox as `phases`.

{table}

![Where the time of a start goes](performance/steps.svg)

The floor's own steps, for comparison:

{floor}

The library saves the start of an interpreter and its imports, {library:.0f} ms; a supervisor that
was started ahead saves {ready:.0f} ms more. The rest above the floor, {above:.0f} ms, goes into the
namespace, the CNI plugins (which run while QEMU starts), the journal (which is synced to the disk
before anything is made), and the joining of the interfaces.
"""

_SPARE_STEPS = """The steps of `sandbox run` with a spare:

{table}
"""

_DELETES = """## Deleting a sandbox

The time from the fork of `sandbox delete` (or from the call) until nothing is left: no process,
namespace, interface, lease or file. The kernel may remove the interfaces of a namespace after the
command has ended.

{table}
"""

_CROWD = """## Many sandboxes

The time of one more start, to the first ping, while so many sandboxes run. Each number was measured
on the way up and on the way down. The first sandbox reads the template's memory from the disk.
*Idle, processors*: how many of the machine's processors those present keep busy, before the start,
while nobody uses them.

{table}

![First ping over the number of sandboxes](performance/crowd.svg)

Of {most} at once, {answered} answered a ping. After their deletion, {left}. One command that
deletes many takes {delete:.0f} ms for each.

### Starts per second

{batch} sandboxes by `sandbox run`, so many of them at once, until all have answered a ping:

{together}

And {many}, two at once. Each start with a spare also makes the next spare:

{sustained}
"""

_MEMORY = """## Memory of a sandbox

One more sandbox beside {beside} others, with a guest of {guest} MiB, a network monitor and one
network. All are idle, and start from the same template. The proportional share counts a page that N
processes have mapped as one N-th; all guests share the template's pages to which none has written.

{table}

The template's memory exists once for all sandboxes: {template:.0f} MiB. The shares above contain
the part of it that the guests have mapped. A [spare](configuration.md#spares) beside them has no
monitor, and holds {spare:.1f} MiB.
"""

_COMMAND_START = """## The command's own start

{table}

`python3` is the interpreter alone, isolated and without site-packages of the user; the command has
the site-packages of its virtual environment.
"""

_HOTPLUG = """## Plugging a NIC into a running VM

A NIC with a TAP on a Linux bridge: from the request to the first ping, and from the request to
remove it to its end.

{table}

`bare` does by hand, in one process, only what must be done; `library` asks a running sandbox over
its control socket; `command` is `tapwright kata-network`. QEMU takes much of the time to remove: it
reports the end of a device when its threads have let go of it.
"""

_NETMON = """## Following the namespace

A veth whose other end is in a Linux bridge: from the moment when it comes up in the namespace to
the first ping that the guest answers. The namespace's own stack does not answer.

{table}
"""

_CARRYING = """## Carrying routes, rules and settings

The time until the network monitor has made the guest's network equal to the namespace's:

{table}
"""

_CNI = """## Running CNI networks

The plugins are bridge, host-local and tuning. `bare` executes them with input that was made before;
`library` is `Runtime` in one process; `command` is `tapwright cni`; `cnitool` has a row where it is
installed.

{table}

`at once` is {threads} threads of one process.
"""

_ENDPOINTS = """## Models and endpoints

Each row is a sandbox of its own: TCP in each direction, with busybox's `nc` in the guest, and the
round trip of pings one after another. Ratios are to a TAP directly in a bridge.

{table}

![TCP to the guest](performance/models.svg)

Under software emulation the guest is the bottleneck, so the models differ by little. `ip tuntap
add` makes the existing TAP without `vnet_hdr`: such a TAP passes no segmentation or checksum
offload. The table has no `vhost-user`, because Open vSwitch's polling takes a whole core.
"""

_PLATFORMS = """## Containers

The same podman runs containers by runc and by Tapwright in turn, from an image of busybox, on a
network with a bridge of its own. *With a spare*, two spares are ready before the start, so
Tapwright makes none during it.

{calls}
{parts}
### Files in a container

A program writes a file of {mib} MiB, with fsync, and reads it while the host's page cache has it; a
shell makes small files. The row *host* is a directory of the same filesystem on the host.

{files}

### Memory of a container

The proportional share of each process for an idle web server, with its network monitor. The last
column is one more container in the same pod, and so in the same guest.

{memory}
"""

_PODS = """## Pods

The same containerd makes pods of one container with runc and with Tapwright in turn, by calls of
the CRI, as a kubelet does.

{table}
"""

_POD_PARTS = """
### Where the time of a pod goes

What containerd calls the runtime for, of further pods with a spare, and what these calls take
together, each with the start of an interpreter. The rest is containerd's own, as with runc: its
shim, the mounts, the CNI network, and what it does between two calls.

{calls}

A call of the runtime that does little, `state`, takes {state:.0f} ms. Of `ExecSync`, the guest
takes {guest:.0f} ms for crun and the process itself, from the request to the supervisor until the
supervisor reports the end. Steps of the first `create`, which makes the sandbox; some run side by
side:

{steps}
"""

_PARTS = """
Of `podman exec`, the guest takes {guest:.0f} ms for crun and the process itself, from the request
to the supervisor until the supervisor reports the end. A call of the runtime that does little,
`state`, takes {state:.0f} ms; an empty interpreter takes {interpreter:.0f} ms of these. `podman run
--rm` calls the runtime three times (`create`, `start`, `delete`), and `podman exec` once. The
column of runc also contains what podman and conmon do themselves.
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
    if "pods" in data:
        found += _pod_aims(data["pods"])
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
    gone, warm = (median(starts["deletes"][kind]["gone"]) for kind in ("command", "library"))
    details = "[where the time goes](#where-the-time-goes) has the steps"
    spared = [
        Aim(
            f"{what}, to bare restore",
            aim,
            "times",
            pinged[kind] / floor,
            "[where the time goes](#where-the-time-goes) has the steps.",
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
            f"the floor takes {floor:.0f} ms; {details}.",
        ),
        Aim(
            "library in a warm process, its supervisor started ahead, to the first ping",
            250,
            "ms",
            ready,
            f"the floor takes {floor:.0f} ms; {details}.",
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
            f"{warm:.0f} ms by the library in a warm process, so the start of the command takes "
            f"{gone - warm:.0f} ms; the rest is the plugins' DEL, and the end of QEMU and of the "
            "namespace.",
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
                f"the {last['present']} keep {median(last['busy']):.2f} processors busy while "
                "they are idle; [the numbers between](#many-sandboxes).",
            )
        )
    found.append(
        Aim(
            f"{sustained['count']} starts, two at once, with a spare",
            5,
            "a second",
            median(sustained["spare"]),
            "each start makes a spare for the next, which takes as much processor time as a "
            "restore; [the table](#starts-per-second) has both.",
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
            "true": f"podman calls the runtime three times, a call that does little takes "
            f"{state:.0f} ms, and the guest works; {figures}.",
            "answer": f"podman calls the runtime twice, a call that does little takes "
            f"{state:.0f} ms, and the guest works; {figures}.",
            "exec": f"the guest takes {median(parts['guest']):.0f} ms, and a call of the runtime "
            f"that does little takes {state:.0f} ms; {figures}.",
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


def _pod_aims(pods: Data) -> list[Aim]:
    def remark(key: str) -> str:
        if not (parts := pods.get("parts")):
            return "[the figures](#pods)."
        calls, state = len(parts["verbs"][key]), median(parts["state"])
        return (
            f"containerd calls the runtime {_TIMES.get(calls, f'{calls} times')}, which takes "
            f"{median(parts['calls'][key]):.0f} ms, and a call that does little takes {state:.0f} "
            f"ms; runc takes {median(pods['runc'][key]):.0f} ms with all that containerd does; "
            "[the parts](#where-the-time-of-a-pod-goes)."
        )

    return [
        Aim(
            f"{what} with a spare, to runc",
            3,
            "times",
            median(pods[SPARED][key]) / median(pods["runc"][key]),
            remark(key),
        )
        for key, what in (
            ("sandbox", "`RunPodSandbox`"),
            ("container", "`CreateContainer` and `StartContainer`"),
            ("exec", "`ExecSync` of `true`"),
            ("removal", "the removal of a pod"),
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
        text += "\nThe aims that are not met:\n\n"
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
    for day in sorted(set((later := run.get("later", {})).values())):
        parts = ", ".join(f"`{part}`" for part in later if later[part] == day)
        text += f" Later runs, on {day}, measured these parts again: {parts}."
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
    return _MEMORY.format(table=tables.memory(data), spare=median(data["spare"]), **numbers)


def _platforms(data: Any) -> str:
    return _PLATFORMS.format(
        calls=tables.platform_calls(data),
        parts=_parts(data.get("parts")),
        mib=data["mib"],
        files=tables.platform_files(data),
        memory=tables.platform_memory(data),
    )


def _pods(data: Any) -> str:
    text = _PODS.format(table=tables.pods(data))
    if parts := data.get("parts"):
        text += _POD_PARTS.format(
            calls=tables.pod_parts(parts),
            steps=tables.pod_steps(parts),
            state=median(parts["state"]),
            guest=median(parts["guest"]),
        )
    return text


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
    "pods": _pods,
    "command_start": lambda data: _COMMAND_START.format(table=tables.command_start(data)),
    "hotplug": lambda data: _HOTPLUG.format(table=tables.hotplug(data)),
    "netmon": lambda data: _NETMON.format(table=tables.netmon(data)),
    "carrying": lambda data: _CARRYING.format(table=tables.carrying(data)),
    "cni": lambda data: _CNI.format(table=tables.cni(data), threads=data["threads"]),
    "endpoints": lambda data: _ENDPOINTS.format(table=tables.endpoints(data)),
    "soak": _soak,
}
