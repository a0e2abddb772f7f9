"""The error that a plugin raises; a module of its own, because all modules here import it."""


class Error(Exception):
    """A plugin's failure; `code` is one of section 5, or 100 and above for the plugin's own."""

    def __init__(self, message: str, code: int = 100, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details
