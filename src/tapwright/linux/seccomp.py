"""A filter of system calls: what is on a list is done, all else is refused (seccomp(2)).

The list is of x86-64 numbers (arch/x86/entry/syscalls/syscall_64.tbl). What is not on it fails with
ENOSYS, as on a kernel that lacks it, so that the C library does it in another way where it can.
"""

import ctypes
import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tapwright.linux import libc

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# linux/bpf_common.h: LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # struct seccomp_data


@dataclass(frozen=True)
class Check:
    """A condition on the lower 32 bits of an argument, counted from 0: what is left of it under
    `mask` is one of `values`, or, with `is_in` false, none of them. Else the call fails: EPERM."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    is_in: bool = True


class Filter:
    """Allows system calls by number, some of them under a condition."""

    def __init__(self, allowed: Iterable[int], checked: dict[int, Check]) -> None:
        refused = _ret(_ERRNO | errno.EPERM)
        code = [_load(_ARCH), _jump(_AUDIT_ARCH_X86_64, 1, 0), _ret(_KILL_PROCESS), _load(_NUMBER)]
        for number, check in checked.items():
            first, second = (_ret(_ALLOW), refused) if check.is_in else (refused, _ret(_ALLOW))
            block = [_load(_ARGUMENTS + 8 * check.argument), _and(check.mask)]
            for value in check.values:
                block += [_jump(value, 0, 1), first]
            block.append(second)
            code += [_jump(number, 0, len(block)), *block]
        for number in allowed:
            code += [_jump(number, 0, 1), _ret(_ALLOW)]
        code.append(_ret(_ERRNO | errno.ENOSYS))
        self._code = ctypes.create_string_buffer(b"".join(code))
        pointer = ctypes.addressof(self._code)
        self._program = ctypes.create_string_buffer(struct.pack("@HP", len(code), pointer))

    def install(self) -> None:
        """Filter the calling thread, and what it becomes and starts, from now on. Raises OSError:
        it needs no new privileges to be set, or CAP_SYS_ADMIN."""
        libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(self._program))


def _load(offset: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD, 0, 0, offset)


def _and(mask: int) -> bytes:
    return _INSTRUCTION.pack(_AND, 0, 0, mask)


def _jump(value: int, if_equal: int, otherwise: int) -> bytes:
    return _INSTRUCTION.pack(_EQUAL, if_equal, otherwise, value)


def _ret(action: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, action)
