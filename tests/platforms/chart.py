"""deploy/kubernetes/chart without Helm, which no release of Debian has: the few actions that its
templates are written in."""

import re
from pathlib import Path

CHART = Path(__file__).parents[2] / "deploy/kubernetes/chart"
_ACTION = re.compile(r"\{\{ (?:required \"[^\"]*\" )?\.([\w.]+) \}\}")


def values() -> dict[str, str]:
    """The defaults, by their paths: `overhead.cpu`."""
    found, above = {}, ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        name, _, value = line.strip().partition(": ")
        if line.startswith("#"):
            continue
        if not value:
            above = name.removesuffix(":") + "."
        else:
            inner = above if line.startswith(" ") else ""
            found[inner + name] = value.strip('"')
    return found


def rendered(template: str, **given: str) -> str:
    """A template with these values beside the defaults."""
    known = {"Release.Namespace": "tapwright"}
    known |= {f"Values.{name}": value for name, value in {**values(), **given}.items()}
    text = (CHART / "templates" / template).read_text()
    done = _ACTION.sub(lambda found: known[found[1]], text)
    assert "{{" not in done, done
    return done
