"""Signals by name or number, as `kill` takes them."""

from tapwright.errors import UsageError

_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP "
    "TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), 1)} | {
    "IOT": 6,
    "CLD": 17,
    "POLL": 29,
    "UNUSED": 31,
    "RTMIN": 34,
    "RTMAX": 64,
}
_MOST = 64


def number(text: str) -> int:
    """The number of `15`, `TERM`, `sigterm`, `RTMIN+3` (signal(7)); 0 is no signal, and only checks
    (kill(2)). Raises UsageError."""
    if text.isdecimal() and int(text) <= _MOST:
        return int(text)
    name, sign, offset = text.upper().removeprefix("SIG").replace("-", "+-").partition("+")
    if name in _NUMBERS and (not sign or (name.startswith("RT") and _is_whole(offset))):
        found = _NUMBERS[name] + int(offset or 0)
        if found <= _MOST:
            return found
    raise UsageError(f"unknown signal {text!r}: give a number from 0 to {_MOST}, or a name")


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
