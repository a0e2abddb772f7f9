"""Compiles filters in the language of pcap-filter(7) to programs for the kernel, by libpcap
(pcap_compile(3PCAP)), as tcpdump and Wireshark do."""

import ctypes
import re

from tapwright.capture.listening import MOST_BYTES
from tapwright.errors import TapwrightError, UsageError

_LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1")  # the name on Debian, and on other distributions
_ETHERNET = 1  # DLT_EN10MB
_ANY_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN
_MOST = 4096  # BPF_MAXINSNS

Instruction = tuple[int, int, int, int]


class _Instruction(ctypes.Structure):
    """struct bpf_insn."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def compiled(expression: str) -> list[Instruction]:
    """Return the program for frames of Ethernet; for an empty expression, an empty one, which
    accepts all frames. Names of hosts are resolved on this host.

    Raises UsageError for an invalid expression, TapwrightError if libpcap is not installed.
    """
    if not expression.strip():
        return []
    if "\0" in expression:
        raise UsageError("a filter has no NUL")
    if re.search(r"\bvlan\b", expression):
        raise UsageError(
            "filter: 'vlan' is not possible: the kernel takes the tag out of a frame before it "
            "looks at a filter. Capture without it, and choose in Wireshark (vlan.id == 5)"
        )
    library = _loaded()
    handle = library.pcap_open_dead(_ETHERNET, MOST_BYTES)
    if not handle:
        raise TapwrightError("libpcap has no memory for a filter")
    handle, program = ctypes.c_void_p(handle), _Program()
    try:
        if library.pcap_compile(
            handle, ctypes.byref(program), expression.encode(), 1, ctypes.c_uint32(_ANY_NETMASK)
        ):
            reason = library.pcap_geterr(handle).decode(errors="replace")
            raise UsageError(f"filter {expression!r}: {reason} (see pcap-filter(7))")
        try:
            if program.length > _MOST:
                raise UsageError(f"filter: it has {program.length} steps, the kernel takes {_MOST}")
            steps = program.instructions[: program.length]
            return [(step.code, step.jt, step.jf, step.k) for step in steps]
        finally:
            library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)


def _loaded() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        return library
    raise TapwrightError(
        "a filter needs libpcap, which is not installed: apt-get install libpcap0.8 (elsewhere the "
        "package is called libpcap), or capture without a filter"
    )
