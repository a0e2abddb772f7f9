"""Makes one page for a browser of pictures. The page fetches nothing; a `live` one fetches from its
own server alone. Pure.

The page shows strings of guests. All of them are escaped; in addition, the page's policy lets only
the page's own script run.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources

from tapwright.diagnosis import drawing, terminal, words
from tapwright.diagnosis.way import Picture
from tapwright.errors import shown

_COLUMNS = 100


def page(pictures: Sequence[Picture], live: str = "", link: str = "") -> str:
    """Return the whole page. With `live`, the page fetches its `fragment` from that path every two
    seconds. With `link`, the page has a link to a live page."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        f"connect-src {connect}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    leading = f'<a href="{html.escape(link)}">live</a>' if link else ""
    title = ", ".join(picture.id for picture in pictures) or "no sandbox"
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(shown(title))} · tapwright</title>\n"
        f"<style>\n{_file('page.css')}</style>\n</head>\n"
        f'<body data-live="{html.escape(live)}">\n'
        '<nav aria-label="size of the drawing">'
        '<button id="smaller" title="smaller">&minus;</button>'
        '<button id="natural" title="natural size">1:1</button>'
        '<button id="larger" title="larger">+</button>'
        '<button id="fit" title="fit to the window">fit</button>'
        f'<span id="state" role="status">{leading}</span></nav>\n'
        f'<main id="picture">\n{fragment(pictures)}</main>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def fragment(pictures: Sequence[Picture]) -> str:
    """Return the part of the page that a live page fetches again."""
    when = max((picture.when for picture in pictures), default=0.0)
    stamp = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    complaints = [
        f'<li class="{one.severity}">{html.escape(_of(picture, one.nic))}: '
        f"{html.escape(shown(one.what))}{_remedy(one.remedy)}</li>"
        for picture in pictures
        for one in picture.complaints
    ]
    listed = f"<ul>{''.join(complaints)}</ul>" if complaints else ""
    verdict = words.verdict([one for picture in pictures for one in picture.complaints])
    kind = "bad" if complaints else "good"
    text = "\n\n".join(terminal.drawing(picture, _COLUMNS) for picture in pictures)
    return (
        f'<header><h1>{html.escape(_title(pictures))}</h1><p><span class="{kind}">'
        f"{html.escape(verdict)}</span> · <time>{stamp}</time></p>{listed}</header>\n"
        f'<div id="drawing" tabindex="0">{drawing.svg(pictures, with_heads=False)}</div>\n'
        f"<details><summary>as text</summary><pre>{html.escape(text)}</pre></details>\n"
    )


def _title(pictures: Sequence[Picture]) -> str:
    if len(pictures) == 1:
        return words.title(pictures[0])
    return f"{len(pictures)} sandboxes" if pictures else "no sandbox"


def _of(picture: Picture, nic: str) -> str:
    return shown(f"{picture.id} {nic}".strip())


def _remedy(text: str) -> str:
    return f" <code>{html.escape(shown(text))}</code>" if text else ""


def _file(name: str) -> str:
    return resources.files("tapwright.diagnosis").joinpath(name).read_text()
