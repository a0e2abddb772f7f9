"""The `tapwright` command: parse, call, print; no logic here.

One module a command or group, which `groups` lists: `sandbox` (with `show`, `explain`, `capture`,
`timing`), `cni` (with `cni_environment`), `image`, `check`, `metrics`, `collection` (gc),
`kata_network`, `kata_ipvs`. `oci` has the OCI runtime's verbs, and `oci_options` reads their
options. `parser` is argparse that starts faster, `output` prints, `version` is the version.

Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong usage. Only the answer goes to
stdout. The modules import what they call when they call it: each command's time includes its start.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, TextIO

_FAILED = 1


def run() -> "NoReturn":
    """The console script. Ends the process at once: the interpreter would tidy up for 5 ms."""
    import gc

    gc.set_threshold(100_000)  # a collection while importing finds nothing and takes 2 ms
    # OpenSSL takes 4 ms to load; Python's own digests do.
    sys.modules["_hashlib"] = None  # type: ignore[assignment]
    try:
        try:
            status = _version() if sys.argv[1:] in (["--version"], ["-v"]) else main()
        except SystemExit as end:  # from argparse
            status = end.code if isinstance(end.code, int) else _FAILED
        _flush(sys.stdout)
    except BrokenPipeError:  # the reader of our output has gone
        status = _FAILED
    _flush(sys.stderr)
    os._exit(status)


def _version() -> int:
    """What argparse would print, which takes longer to load than the interpreter."""
    from tapwright.cli import version

    print(version.TEXT)
    return 0


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command; return its exit status."""
    from tapwright.cli import oci_options

    argv = sys.argv[1:] if argv is None else argv
    if oci_options.verb_of(argv):
        from tapwright.cli import oci

        return oci.main(argv)
    from tapwright.cli import groups

    return groups.main(argv)


def _flush(stream: "TextIO | None") -> None:
    """Platforms close what we print to."""
    if stream is not None:
        stream.flush()
