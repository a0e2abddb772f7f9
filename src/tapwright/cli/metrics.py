"""`tapwright metrics`: numbers for Prometheus."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from tapwright.cli import output
from tapwright.errors import TapwrightError, UsageError
from tapwright.linux import files

if TYPE_CHECKING:
    from tapwright.metrics.exposition import Family

_MOST_PORT = 65535


def add_commands(command: argparse.ArgumentParser, words: Container[str]) -> None:
    """`metrics` has options, and no commands below it."""
    command.description = (
        "Print what sandboxes, their NICs, guests and processes, spares, templates and CNI plugins "
        "have counted, as metrics in the format OpenMetrics. Each guest has one second to answer."
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="answer Prometheus at http://ADDRESS:PORT/metrics until a signal comes; whoever "
        "reaches the address can read the metrics",
    )
    form.add_argument(
        "--textfile",
        metavar="FILE",
        help="write a file for the textfile collector of node_exporter, in the older text format; "
        "the name of the file must end in .prom",
    )
    command.set_defaults(run=_metrics)


def _metrics(arguments: argparse.Namespace) -> int:
    from tapwright import config
    from tapwright.metrics import collecting, exposition
    from tapwright.state import registry

    output.need_root()
    templates = config.load(arguments.config).factory.template_path

    records = registry.Remembered()

    def collect() -> "list[Family]":
        return collecting.collect(arguments.root, templates, records=records)

    if arguments.listen:
        return _listen(*_address(arguments.listen), collect)
    if not arguments.textfile:
        print(exposition.openmetrics(collect()), end="")
        return 0
    if not arguments.textfile.endswith(".prom"):
        raise UsageError(f"--textfile {arguments.textfile}: node_exporter reads *.prom alone")
    _write(arguments.textfile, exposition.plain(collect()))
    return 0


def _write(name: str, text: str) -> None:
    """Write a complete file, readable for all: node_exporter may read it at any moment, as a user
    of its own."""
    os.umask(0o022)
    try:
        files.replace(name, text, synced=False, mode=0o644, is_shared=True)
    except OSError as error:
        raise TapwrightError(f"{name} can't be written: {error.strerror}") from None


def _listen(address: str, port: int, collect: "Callable[[], list[Family]]") -> int:
    from tapwright.metrics.serving import Server

    try:
        server = Server(address, port, collect)
    except OSError as error:
        raise TapwrightError(
            f"--listen {address}:{port}: can't listen there: {error.strerror}"
        ) from None
    except OverflowError:
        raise UsageError(f"--listen: {port} is not a port") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    host, port = server.server_address[:2]
    shown = f"[{host!s}]" if ":" in str(host) else str(host)
    print(f"listening at http://{shown}:{port}/metrics", file=sys.stderr, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def _address(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > _MOST_PORT or not address:
        raise UsageError(f"--listen {text}: it must be ADDRESS:PORT, such as 127.0.0.1:9817")
    return address.removeprefix("[").removesuffix("]"), int(port)
