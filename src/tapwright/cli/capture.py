"""`tapwright sandbox capture`: packets at each point of their way."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tapwright.cli import output
from tapwright.cli.parser import add_id
from tapwright.errors import UsageError, shown

if TYPE_CHECKING:
    from tapwright.capture.capturing import Summary

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "capture",
        help="capture packets at each point between guest and host",
        usage="%(prog)s ID [--at PLACE]... [--nic NAME] [-w FILE] [--seconds N] [--bytes N] "
        "[FILTER ...]",
        description="""\
Write the packets of a running sandbox to a pcapng file, for Wireshark and tshark, once for each
point that they pass: in the guest, at the TAP, at the interface of the namespace, and at its other
end on the host. The file's interfaces are named for the points (guest:eth0, tap:tap2_kata,
interface:eth0, host:veth1234).

The capture ends after some time, at some size, or with Ctrl-C; then the command says how many
packets were dropped. FILTER is that of tcpdump (pcap-filter(7)), and needs libpcap.""",
        epilog="""\
  tapwright sandbox capture web -w web.pcapng tcp port 80
  tapwright sandbox capture web --at guest --at tap -w - | tshark -r - -T fields \\
      -e frame.interface_name -e frame.time_epoch -e _ws.col.Info""",
    )
    command.mixes = True  # the filter may be behind options
    add_id(command)
    command.add_argument(
        "filter",
        metavar="FILTER",
        nargs="*",
        help="a filter of pcap-filter(7), such as: icmp or tcp port 80",
    )
    command.add_argument(
        "--at",
        metavar="PLACE",
        action="append",
        default=[],
        choices=("guest", "tap", "interface", "host"),
        help="capture at this point: guest, tap, interface or host (repeatable; default: all "
        "points of the sandbox)",
    )
    command.add_argument(
        "--nic",
        metavar="NAME",
        default="",
        help="capture the packets of this NIC of the guest (default: all NICs)",
    )
    command.add_argument(
        "-w",
        "--write",
        metavar="FILE",
        default="",
        help="write to this file; - is stdout (default: ID.pcapng, which must not exist yet)",
    )
    command.add_argument(
        "--seconds", metavar="N", type=_seconds, help="end after N seconds (default: 60)"
    )
    command.add_argument(
        "--bytes",
        metavar="N",
        type=_bytes,
        help="end before the file is larger than N bytes; K, M or G may follow (default: 64M)",
    )
    command.set_defaults(run=_capture)


def _capture(arguments: argparse.Namespace) -> None:
    from tapwright.capture import capturing, filters, points
    from tapwright.state import registry

    output.need_root()
    # All that can be wrong is found before anything begins.
    expression = " ".join(arguments.filter)
    program = filters.compiled(expression)
    sandbox = registry.find(arguments.root, arguments.id)
    sandbox.check_running()
    found = points.of_sandbox(sandbox.readable_record(), arguments.at, arguments.nic)
    name = arguments.write or f"{sandbox.id}.pcapng"
    fd = _opened(name, is_ours=not arguments.write)
    bounds: dict[str, Any] = {"seconds": arguments.seconds, "most_bytes": arguments.bytes}
    try:
        summary = capturing.capture(
            sandbox,
            found,
            program,
            expression,
            _writing(fd),
            needs_guest=points.GUEST in arguments.at,
            begun=lambda: _tell(f"listening at {', '.join(point.name for point in found)}"),
            **{key: value for key, value in bounds.items() if value is not None},
        )
    finally:
        if fd != 1:
            os.close(fd)
    _tell_end(summary, "stdout" if fd == 1 else name)


def _opened(name: str, is_ours: bool) -> int:
    if name == "-":
        if os.isatty(1):
            raise UsageError("-w -: stdout is a terminal; lead it into a program, or name a file")
        return 1
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if is_ours else os.O_TRUNC)
    try:
        # Only root may read a sandbox's packets.
        return os.open(name, flags, 0o600)
    except FileExistsError:
        raise UsageError(f"there is a file {name} already; name another one with -w") from None


def _writing(fd: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    return write


def _tell_end(summary: "Summary", name: str) -> None:
    for note in summary.notes:
        _tell(f"warning: {note}")
    count = sum(counted.written for counted in summary.counted)
    _tell(f"{name}: {count} packets in {summary.seconds:.1f} s; ended because {summary.reason}")
    width = max(len(counted.point.name) for counted in summary.counted)
    for counted in summary.counted:
        words = f"{counted.written} packets, {counted.dropped} dropped"
        _tell(f"  {counted.point.name.ljust(width)}  {words}")


def _tell(text: str) -> None:
    indent = text[: len(text) - len(text.lstrip())]
    print(f"{indent}{shown(text)}", file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of 86400 s at most")
    return value


def _bytes(text: str) -> int:
    from tapwright.capture.capturing import LEAST_BYTES

    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or unit not in ("", *_UNITS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500K, 64M, 2G")
    size = int(digits) * _UNITS.get(unit, 1)
    if size < LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"a file has {LEAST_BYTES} bytes at least")
    return size
