"""Small files, of the kernel and of the agent."""

import contextlib
import os


def read(path: str) -> str:
    """Raises OSError."""
    with open(path, errors="replace") as file:
        return file.read()


def write(path: str, content: str) -> None:
    """Replace the content of a file. Raises OSError."""
    with open(path, "w") as file:
        file.write(content)


def remove(directory: str) -> None:
    """Remove a directory with the files in it, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
