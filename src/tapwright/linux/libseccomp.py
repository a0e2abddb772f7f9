"""Makes seccomp(2) programs from rules about system calls by name. libseccomp knows the names; QEMU
and runc need it, too, so it is installed (seccomp.h; seccomp_rule_add(3))."""

import ctypes
import errno
import os
import struct

from tapwright.linux.files import closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LIBRARY = "libseccomp.so.2"

ALLOW, LOG, TRACE, ERRNO = 0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x00050000
TRAP, KILL_THREAD, KILL_PROCESS = 0x00030000, 0x00000000, 0x80000000
"""include/uapi/linux/seccomp.h; an errno, or a number for the tracer, is added to the value."""

COMPARISONS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}

_OPTIMIZE, _BY_TREE = 8, 2  # SCMP_FLTATR_CTL_OPTIMIZE
_X86_64, _X32 = 0xC000003E, 0x4000003E  # for both, the kernel reports the first one
_X32_BIT = 0x40000000  # in the number of a call
_INSTRUCTION = struct.Struct("=HBBI")
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, JMP|JGT|K, RET|K
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _GREATER, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x06
_NUMBER, _ARCH = 0, 4  # struct seccomp_data
_MOST_BYTES = 8 * 4096  # BPF_MAXINSNS


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class Rules:
    """The actions of system calls: `default`, and others for some calls. The machine's own
    architecture is always covered; a call of an architecture that is not covered ends its
    process."""

    def __init__(self, default: int) -> None:
        """Raises OSError if the library is not installed."""
        self._library = library = ctypes.CDLL(LIBRARY)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        library.seccomp_arch_native.restype = ctypes.c_uint32
        self._context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
        if not self._context:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._default = default
        self._architectures = {int(library.seccomp_arch_native())}
        self._last: dict[int, int] = {}

    def close(self) -> None:
        self._library.seccomp_release(self._context)

    def add_architecture(self, name: str) -> bool:
        """Cover another architecture ("x86", "x32"); return whether the name is known. Raises
        OSError."""
        token = int(self._library.seccomp_arch_resolve_name(name.encode()))
        if token:
            self._done(self._library.seccomp_arch_add(self._context, ctypes.c_uint32(token)))
            self._architectures.add(token)
        return bool(token)

    def by_tree(self) -> None:
        """Let the filter find a call by a binary tree, if the library can do that (2.5)."""
        self._library.seccomp_attr_set(self._context, _OPTIMIZE, ctypes.c_uint32(_BY_TREE))

    def add(
        self,
        name: str,
        action: int,
        comparisons: "Sequence[tuple[int, int, int, int]]" = (),
    ) -> None:
        """Set the action of a call for which all comparisons hold: (argument, one of COMPARISONS,
        value, second value). An unknown name is ignored. Raises OSError."""
        name_bytes = name.encode()
        number = int(self._library.seccomp_syscall_resolve_name(name_bytes))
        for token in self._architectures:
            there = int(
                self._library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name_bytes)
            )
            self._last[token] = max(self._last.get(token, 0), there)
        if number == -1 or action == self._default:
            return
        given = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
        self._done(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, len(comparisons), given
            )
        )

    def program(self) -> bytes:
        """Return the program in the kernel's format (struct sock_filter). A call whose number is
        above all added names fails as unknown: it is newer than the rules, and the C library then
        uses another call. Raises OSError."""
        with closing(os.memfd_create("filter", os.MFD_CLOEXEC)) as fd:
            self._done(self._library.seccomp_export_bpf(self._context, fd))
            rules = os.pread(fd, _MOST_BYTES, 0)
        is_open = self._default & 0xFFFF0000 in (ALLOW, LOG, TRACE)
        return rules if is_open else b"".join([*self._unknown(), rules])

    def _unknown(self) -> "Iterable[bytes]":
        for token, last in self._last.items():
            if not last:
                continue
            bound = _X32_BIT if token == _X86_64 else 0xFFFFFFFF
            yield _INSTRUCTION.pack(_LOAD, 0, 0, _ARCH)
            yield _INSTRUCTION.pack(_EQUAL, 0, 4, _X86_64 if token == _X32 else token)
            yield _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER)
            yield _INSTRUCTION.pack(_GREATER_OR_EQUAL, 2, 0, bound)
            yield _INSTRUCTION.pack(_GREATER, 0, 1, last)
            yield _INSTRUCTION.pack(_RETURN, 0, 0, ERRNO | errno.ENOSYS)

    def _done(self, result: int) -> None:
        if result < 0 and result != -errno.EEXIST:
            raise OSError(-result, os.strerror(-result))
