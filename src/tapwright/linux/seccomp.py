"""A filter of system calls, for a program that confines itself further (seccomp(2)).

The numbers are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
"""

import ctypes
import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tapwright.linux import libc

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

# x32 has the same calls under other numbers (arch/x86/include/uapi/asm/unistd.h:
# __X32_SYSCALL_BIT).
_X32_BIT = 0x40000000

# linux/bpf_common.h: LD|W|ABS, ALU|AND|K, JMP|JA, JMP|JEQ|K, JMP|JGE|K, RET|K
_LOAD, _AND, _JUMP, _EQUAL, _GREATER_OR_EQUAL, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # struct seccomp_data

CLONE3 = 435
"""Its flags are in memory, which no filter sees; where it is lacking, the C library uses clone."""


@dataclass(frozen=True)
class Check:
    """A condition on the lower 32 bits of an argument (the first is 0): under `mask`, they are one
    of `values`, or, with `is_in` false, none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    is_in: bool = True


Condition = Sequence[Check]
"""The condition holds if all its checks hold."""


class Filter:
    """Refuses some system calls by number, and others unless a condition holds. All other calls
    pass.

    A call of `lacking`, or with a number from `unknown` on, fails with ENOSYS as on a kernel
    without it, so the C library uses another call. A call of `refused` fails with EPERM. A call of
    `checked` passes if one of its conditions holds, and fails with EPERM otherwise.
    """

    def __init__(
        self,
        refused: Iterable[int] = (),
        checked: Mapping[int, Sequence[Condition]] | None = None,
        lacking: Iterable[int] = (),
        unknown: int = _X32_BIT,
    ) -> None:
        code = [_load(_ARCH), _equal(_AUDIT_ARCH_X86_64, 1, 0), _ret(_KILL_PROCESS), _load(_NUMBER)]
        for number, conditions in (checked or {}).items():
            block = [instruction for each in conditions for instruction in _allowing(each)]
            block.append(_ret(_ERRNO | errno.EPERM))
            code += [_equal(number, 0, len(block)), *block]
        for numbers, error in ((refused, errno.EPERM), (lacking, errno.ENOSYS)):
            for number in numbers:
                code += [_equal(number, 0, 1), _ret(_ERRNO | error)]
        code += [_at_least(unknown, 0, 1), _ret(_ERRNO | errno.ENOSYS), _ret(_ALLOW)]
        self._code = ctypes.create_string_buffer(b"".join(code))
        pointer = ctypes.addressof(self._code)
        self._program = ctypes.create_string_buffer(struct.pack("@HP", len(code), pointer))

    def install(self) -> None:
        """Filter the calling thread, and the programs and processes that it starts, from now on.
        Raises OSError: the thread needs no_new_privs, or CAP_SYS_ADMIN."""
        libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(self._program))


def _allowing(condition: Condition) -> list[bytes]:
    """Allow the call if the condition holds; otherwise go on with the code that follows."""
    code = [_ret(_ALLOW)]
    for check in reversed(condition):
        code = [*_unless(check, len(code)), *code]
    return code


def _unless(check: Check, distance: int) -> list[bytes]:
    """Skip `distance` instructions of the code that follows, unless the check holds."""
    code = [_load(_ARGUMENTS + 8 * check.argument), _and(check.mask)]
    left = len(check.values)
    for value in check.values:
        left -= 1
        code.append(_equal(value, left + 1 if check.is_in else left + distance, 0))
    return [*code, _jump(distance)] if check.is_in else code


def _load(offset: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD, 0, 0, offset)


def _and(mask: int) -> bytes:
    return _INSTRUCTION.pack(_AND, 0, 0, mask)


def _equal(value: int, if_so: int, otherwise: int) -> bytes:
    return _INSTRUCTION.pack(_EQUAL, if_so, otherwise, value)


def _jump(distance: int) -> bytes:
    return _INSTRUCTION.pack(_JUMP, 0, 0, distance)


def _at_least(value: int, if_so: int, otherwise: int) -> bytes:
    return _INSTRUCTION.pack(_GREATER_OR_EQUAL, if_so, otherwise, value)


def _ret(action: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, action)
