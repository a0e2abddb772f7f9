"""`python -m reference DIRECTORY`: write man pages and completions below DIRECTORY/share."""

import sys
from pathlib import Path

from reference import completions, manual


def write(directory: Path) -> dict[str, list[str]]:
    """Write all; return the paths of the files by the directory where they belong, `share/…`."""
    texts = {f"man/man1/{name}": text for name, text in manual.pages().items()}
    texts |= completions.scripts()
    found: dict[str, list[str]] = {}
    for name, text in texts.items():
        path = directory / "share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found.setdefault(f"share/{Path(name).parent}", []).append(str(path))
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
