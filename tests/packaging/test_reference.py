"""Man pages and completions have every command and option, and shells can use them."""

import os
import pty
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference import commands, library
from reference.__main__ import write

pytestmark = pytest.mark.unit

ALL = commands.everything()
# What the completions ask of the command: what there is on this host.
FAKE = """\
#!/bin/sh
case "$*" in
"sandbox list") printf 'ID STATUS\\nweb running\\ndb running\\n' ;;
"list --quiet") printf 'c1\\nc2\\n' ;;
"cni list") printf 'NETWORK VERSION\\nmynet 1.0.0\\n' ;;
esac
"""
# The line so far, and what can follow.
FOLLOWING = [
    ("tapwright san", {"sandbox"}),
    ("tapwright sandbox in", {"inspect"}),
    ("tapwright --root /tmp sandbox in", {"inspect"}),
    ("tapwright --log-level ", {"debug", "info", "warning", "error"}),
    ("tapwright sandbox delete web ", {"web", "db"}),
    ("tapwright sandbox run --network ", {"mynet"}),
    ("tapwright sandbox run --mem", {"--memory"}),
    ("tapwright kata-network list-routes w", {"web"}),
    ("tapwright kill ", {"c1", "c2"}),
    ("tapwright update --pids", {"--pids-limit"}),
    ("tapwright-netmon -l", {"-log"}),
]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    write(directory)
    return directory / "share"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a shell that finds a `tapwright` of ours."""
    directory = tmp_path_factory.mktemp("bin")
    (directory / "tapwright").write_text(FAKE)
    (directory / "tapwright").chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(directory), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def program(name: str) -> str:
    if not (found := shutil.which(name)):
        pytest.skip(f"{name} is not installed")
    return found


def plain(page: str) -> str:
    """Of a page in roff what a reader sees."""
    page = re.sub(r"\\f[BIR]", "", page).replace("\\-", "-").replace("\\&", "")
    return page.replace("\\e", "\\").replace("\\[u2026]", "…")


@pytest.mark.parametrize("command", ALL, ids=lambda command: str(command.name))
def test_each_command_and_option_has_its_place_in_a_man_page(
    command: commands.Command, share: Path
) -> None:
    verbs = {verb.name for verb in commands.verbs().commands}
    name = "tapwright-oci" if command.name in verbs else "-".join(command.words[:2])
    page = plain((share / "man/man1" / f"{name}.1").read_text())
    if len(command.words) > 2 or command.name in verbs:
        page = page.partition(f".SS {' '.join(command.words[1:])}\n")[2].partition("\n.S")[0] + "\n"
    assert command.name in page
    assert command.description in page
    for option in command.options:
        if not (command.commands and "--help" in option.names and len(command.words) > 1):
            named = f"{', '.join(option.names)} {option.metavar}".strip()
            assert f"{named}\n{commands.sentence(option.help)}\n" in page


@pytest.mark.parametrize("command", ALL, ids=lambda command: str(command.name))
def test_each_command_and_option_is_completed(command: commands.Command, share: Path) -> None:
    bash = share / "bash-completion/completions" / command.words[0]
    case = bash.read_text().partition("in\n")[2]
    quoted = f"'{command.name}'" if " " in command.name else command.name
    case = case.partition(f"    {quoted})\n")[2].partition(";;")[0]
    zsh = (share / "zsh/site-functions/_tapwright").read_text()
    fish = (share / "fish/vendor_completions.d/tapwright.fish").read_text()
    words = [name for option in command.options for name in option.names]
    words += [below.words[-1] for below in command.commands]
    assert words
    for word in words:
        assert re.search(rf"[ '=]{word}[ '\n]", case), word
        assert re.search(rf"[)*' ]{word}[=\[:]", zsh), word
        kind = r"-[slo] " if word.startswith("-") else "-a "
        assert re.search(rf"{kind}{word.lstrip('-')} ", fish), word


@pytest.mark.parametrize(("line", "expected"), FOLLOWING)
def test_bash_completes(
    line: str, expected: set[str], share: Path, environment: dict[str, str]
) -> None:
    words = line.split(" ")
    script = share / "bash-completion/completions" / words[0]
    done = subprocess.run(
        [
            *(program("bash"), "--norc", "-c"),
            'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); "_${1//-/_}"; '
            'printf "%s\\n" "${COMPREPLY[@]}"',
            *("bash", str(script), *words),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


def test_bash_completes_values_behind_an_equals_sign(
    share: Path, environment: dict[str, str]
) -> None:
    """Which bash makes a word of its own."""
    script = share / "bash-completion/completions/tapwright"
    words = "tapwright sandbox run --network = m"
    text = (
        f'source {script}; COMP_WORDS=({words}); COMP_CWORD=5; _tapwright; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        [program("bash"), "--norc", "-c", text], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["mynet"]


@pytest.mark.parametrize(("line", "expected"), FOLLOWING)
def test_fish_completes(
    line: str, expected: set[str], share: Path, environment: dict[str, str]
) -> None:
    script = share / "fish/vendor_completions.d/tapwright.fish"
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", f"source {script}; complete -C '{line}'"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {completed.partition("\t")[0] for completed in done.stdout.splitlines()}
    # fish 4 also gives what has the word in its middle.
    begun = {word for word in found if word.startswith(line.rpartition(" ")[2])}
    assert (begun, done.stderr) == (expected, "")


class Terminal:
    """A zsh that somebody types into."""

    def __init__(self, functions: Path, environment: dict[str, str]) -> None:
        pid, self.fd = pty.fork()
        if pid == 0:
            shell = shutil.which("zsh") or "zsh"
            os.execve(shell, ["zsh", "-f", "-i"], environment)  # noqa: S606 - in a terminal
        self.pid = pid
        self.type(f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D\n")
        self.type("LISTMAX=1000; PS1=; RPS1=; unsetopt zle_bracketed_paste; echo rea''dy\n")
        self.until("ready")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, *texts: str) -> None:
        """Wait until all these are shown."""
        shown = ""
        while not all(text in shown for text in texts):
            ready, _, _ = select.select([self.fd], [], [], 60)
            assert ready, f"{texts} are not shown, but {shown!r}"
            shown += os.read(self.fd, 65536).decode(errors="replace")

    def end(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def zsh(share: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    program("zsh")
    terminal = Terminal(share / "zsh/site-functions", environment)
    try:
        yield terminal
    finally:
        terminal.end()


@pytest.mark.parametrize(("line", "expected"), FOLLOWING)
def test_zsh_completes(line: str, expected: set[str], zsh: Terminal) -> None:
    zsh.type(f"{line}\t\t")
    # Of one candidate it types the rest, of several it lists all.
    typed = line.split(" ")[-1]
    wanted = expected if len(expected) > 1 else {word.removeprefix(typed) for word in expected}
    zsh.until(*wanted)
    zsh.type("\x15echo do''ne\n")
    zsh.until("done")


def test_man_pages_are_well_formed(share: Path) -> None:
    pages = sorted((share / "man/man1").iterdir())
    for page in pages:
        done = subprocess.run(
            [program("man"), "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stderr == ""


def test_mandoc_finds_no_fault_in_man_pages(share: Path) -> None:
    done = subprocess.run(
        [program("mandoc"), "-Tlint", "-Wwarning", *sorted((share / "man/man1").iterdir())],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_the_page_of_the_library_is_that_of_its_docstrings() -> None:
    assert library.PAGE.read_text() == library.page(), (
        "PYTHONPATH=scripts python3 -m reference.library writes it"
    )
