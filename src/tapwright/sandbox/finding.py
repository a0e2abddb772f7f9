"""A result of checking a host."""

from tapwright.dataclass import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """Something the host has or lacks. A `problem` keeps every sandbox from starting; a `warning`
    makes it slower, or keeps it off a network. `advice` says what to do; where a command does it,
    `run: COMMAND` is its end."""

    name: str
    state: str
    found: str
    advice: str = ""
