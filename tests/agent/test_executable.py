"""What crun says of a program that it can't execute, in runc's words. Each release of crun has
others; a guest has those of one release alone."""

import pytest

from tapwright.agent.guest.executable import in_runcs_words, is_a_part, refused_in_runcs_words

pytestmark = pytest.mark.unit

NOT_FOUND = 'exec: "tool": executable file not found in $PATH'
REFUSED = 'exec: "/etc": permission denied'

_SAID = b'{"msg":"exec container process `/s`: Exec format error","level":"error","time":"now"}'


_NEWER = b"""{
  "msg": "exec container process `\\/s`: Exec format error",
  "level": "error",
  "time": "now"
}"""


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_crun_s_own_words(ending: bytes) -> None:
    """On a pipe, and on a terminal."""
    for said in (_SAID, _NEWER.replace(b"\n", ending)):
        assert in_runcs_words(said + ending, "/t") == b"exec /s: exec format error" + ending
    assert in_runcs_words(b"exec `/t`: Exec format error" + ending, "/t") == (
        b"exec /t: exec format error" + ending
    )
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


def test_a_part_of_a_line() -> None:
    for said in (_SAID, _NEWER):
        for size in range(35, len(said)):
            assert is_a_part(said[:size])
        assert not is_a_part(said + b"\n")
    assert not is_a_part(_SAID[:20])  # a program's prompt may be as long
    assert not is_a_part(_SAID + b"x" * 20_000)


def test_a_directory_that_is_not_there() -> None:
    assert refused_in_runcs_words("chdir `/x y`: No such file or directory", "/t") == (
        'chdir to cwd ("/x y") set in config.json failed: no such file or directory'
    )


@pytest.mark.parametrize(
    ("program", "message", "expected"),
    [
        # crun 1.8
        ("tool", "executable file `tool` not found in $PATH: No such file or directory", NOT_FOUND),
        ("tool", "open executable: Operation not permitted", NOT_FOUND),
        ("/etc", "open executable: Operation not permitted", REFUSED),
        ("/etc", "open executable: Permission denied", REFUSED),
        (
            "/loop",
            "open executable: Too many levels of symbolic links",
            'exec: "/loop": stat /loop: too many levels of symbolic links',
        ),
        # crun 1.21, and 1.28
        (
            "/no",
            "executable file `/no` not found: No such file or directory",
            'exec: "/no": stat /no: no such file or directory',
        ),
        ("/etc", "the path `/etc` is not a regular file: Operation not permitted", REFUSED),
        (
            "tool",
            "the path `tool` exists but it is not executable: Operation not permitted",
            NOT_FOUND,
        ),
        ("/etc", "cannot open `/etc`: Permission denied", REFUSED),
        (
            "./a/b",
            "open `//data/./a/b`: Not a directory",
            'exec: "./a/b": stat ./a/b: not a directory',
        ),
    ],
)
def test_a_program_that_is_refused(program: str, message: str, expected: str) -> None:
    assert refused_in_runcs_words(message, program) == expected


@pytest.mark.parametrize(
    "message",
    [
        "open `/proc/sys`: Permission denied",
        "cannot open cgroup file `x`: Permission denied",
        "mount `tmpfs` to `/x`: Permission denied",
        "other",
    ],
)
def test_a_refusal_of_something_else(message: str) -> None:
    assert refused_in_runcs_words(message, "/bin/true") == message
