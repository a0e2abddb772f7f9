"""How a long call reports its present step."""

from collections.abc import Callable

Progress = Callable[[str], None]
"""Gets a line of text when a long step begins."""
