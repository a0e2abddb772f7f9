"""What crun says of a program that it can't execute, in runc's words."""

import pytest

from tapwright.agent.guest.executable import in_runcs_words, refused_in_runcs_words

pytestmark = pytest.mark.unit

_SAID = b'{"msg":"exec container process `/s`: Exec format error","level":"error","time":"now"}'


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_crun_s_own_words(ending: bytes) -> None:
    """On a pipe, and on a terminal."""
    assert in_runcs_words(_SAID + ending, "/t") == b"exec /s: exec format error" + ending
    assert in_runcs_words(b"exec: Exec format error" + ending, "/t") == (
        b"exec /t: exec format error" + ending
    )
    guess = _SAID.replace(b"process `", b"process (missing dynamic library?) `")
    assert in_runcs_words(guess + ending, "/t") == b"exec /s: exec format error" + ending


@pytest.mark.parametrize(
    "output",
    [b"", b"text\n", b"exec: text\n", _SAID + b"\nmore\n", _SAID[:40], _SAID.replace(b"`", b"")],
)
def test_all_else_stays(output: bytes) -> None:
    assert in_runcs_words(output, "/t") == output


def test_a_directory_that_is_not_there() -> None:
    assert refused_in_runcs_words("chdir `/x y`: No such file or directory") == (
        'chdir to cwd ("/x y") set in config.json failed: no such file or directory'
    )
    assert refused_in_runcs_words("other") == "other"
