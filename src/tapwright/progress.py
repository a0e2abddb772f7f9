"""How a long call says what it does at present."""

from collections.abc import Callable

Progress = Callable[[str], None]
"""Gets a line of words, each time that something begins which takes long."""
