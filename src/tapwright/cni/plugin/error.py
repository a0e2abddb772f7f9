"""What a plugin raises: imported by all of its modules, and by nothing slow."""


class Error(Exception):
    """A plugin's failure; `code` is one of section 5, or 100 and above for the plugin's own."""

    def __init__(self, message: str, code: int = 100, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details
