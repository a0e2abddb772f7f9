"""How crun's words about a program that can't be executed are translated. Each release has other
ones; a guest has those of one release alone."""

import pytest

from tapwright.oci.shim import program_error_in_runcs_words

pytestmark = pytest.mark.unit

NOT_FOUND = 'exec: "tool": executable file not found in $PATH'
REFUSED = 'exec: "/etc": permission denied'


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
def test_of_a_program(program: str, message: str, expected: str) -> None:
    assert program_error_in_runcs_words(message, program) == expected


@pytest.mark.parametrize(
    "message",
    [
        "open `/proc/sys`: Permission denied",
        "cannot open cgroup file `x`: Permission denied",
        "mount `tmpfs` to `/x`: Permission denied",
    ],
)
def test_of_something_else(message: str) -> None:
    assert program_error_in_runcs_words(message, "/bin/true") == message
