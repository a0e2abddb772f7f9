"""Plugins that fail in every other way than the specification's."""

import os
import threading
from pathlib import Path

import pytest

from tapwright.cni import Attachment, CniError, PluginError, Run, process
from tapwright.cni.process import OUTPUT_LIMIT
from tests.cni.fakes import RESULT, Fakes, network
from tests.host import eventually

pytestmark = pytest.mark.unit

WEB = Attachment("web", "eth0", "/run/netns/web")
LITTLE = 300_000
LOTS = "head -c 2000000 /dev/zero | tr '\\0' x; echo the end"


def failure(fakes: Fakes, body: str = "", timeout: float = 30.0) -> PluginError:
    """How ADD with this script fails."""
    if body:
        fakes.script("p", body)
    with pytest.raises(PluginError) as caught:
        fakes.runtime(timeout=timeout).add(network("p"), WEB)
    error = caught.value
    assert (error.network, error.plugin, error.command) == ("net", "p", "ADD")
    return error


def test_error_object_on_stdout(fakes: Fakes) -> None:
    error = failure(
        fakes, """echo '{"code": 7, "msg": "bad", "details": "x"}'; echo log >&2; exit 1"""
    )
    assert (error.code, error.message, error.details, error.stderr) == (7, "bad", "x", "log\n")


def test_capitals_of_an_error_make_no_difference(fakes: Fakes) -> None:
    """As in Go's decoder, and in what plugins that are not written in Go print."""
    error = failure(fakes, """echo '{"Code": 11, "Msg": "later", "Details": "x"}'; exit 1""")
    assert (error.code, error.message, error.details) == (11, "later", "x")


@pytest.mark.parametrize(
    ("printed", "code", "message", "details"),
    [
        (
            '{"code": 11, "details": "later"}',
            11,
            "exit status 1, with an empty error message",
            "later",
        ),
        ('{"code": 11, "msg": null}', 11, "exit status 1, with an empty error message", ""),
        ('{"code": "11", "msg": "bad"}', 0, "bad", ""),
        ('{"code": true, "msg": "bad"}', 0, "bad", ""),
        ('{"details": "x"}', 0, 'exit status 1: {"details": "x"}', ""),
    ],
)
def test_half_an_error_object(
    fakes: Fakes, printed: str, code: int, message: str, details: str
) -> None:
    """The code is what callers act on, so it counts without a message, too."""
    error = failure(fakes, f"echo '{printed}'; exit 1")
    assert (error.code, error.message, error.details) == (code, message, details)


def test_text_on_stderr(fakes: Fakes) -> None:
    error = failure(fakes, "echo 'no such bridge' >&2; exit 2")
    assert "no such bridge" in error.message
    assert error.stderr == "no such bridge\n"


def test_nothing_said(fakes: Fakes) -> None:
    assert failure(fakes, "exit 3").message == "exit status 3: it said nothing"


def test_exit_by_signal(fakes: Fakes) -> None:
    assert "ended by signal 11" in failure(fakes, "kill -SEGV $$").message


@pytest.mark.parametrize("output", ["hello", "[]", "3", '"x"', "{", '{"x": NaN}', r"\0"])
def test_output_that_is_not_a_json_object(fakes: Fakes, output: str) -> None:
    assert "its output is not" in failure(fakes, f"printf '{output}'").message


def test_output_nested_without_end(fakes: Fakes) -> None:
    deep = "printf '[%.0s' $(seq 100000)"
    assert "nested deeper" in failure(fakes, deep).message


def test_no_output(fakes: Fakes) -> None:
    assert "no result" in failure(fakes, "exit 0").message


def test_result_of_unknown_version(fakes: Fakes) -> None:
    error = failure(fakes, """echo '{"cniVersion": "9.9.9"}'""")
    assert "9.9.9" in error.message


def test_result_of_another_version_is_converted(fakes: Fakes) -> None:
    fakes.plugin("p", add={"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}})
    result = fakes.runtime().add(network("p"), WEB)
    assert result == {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}


def test_not_executable(fakes: Fakes) -> None:
    fakes.script("p", "exit 0").chmod(0o644)
    assert "not executable" in failure(fakes).message


def test_not_a_program(fakes: Fakes) -> None:
    (fakes.bin / "p").write_text("no program, no interpreter\n")
    (fakes.bin / "p").chmod(0o755)
    assert "another kind of machine" in failure(fakes).message


@pytest.mark.parametrize("line", ["#!/no/such", "#!/bin/sh\r"])
def test_no_interpreter(fakes: Fakes, line: str) -> None:
    (fakes.bin / "p").write_text(f"{line}\n")
    (fakes.bin / "p").chmod(0o755)
    assert "the interpreter after its '#!'" in failure(fakes).message


@pytest.mark.parametrize("place", [0, 1])
def test_add_again_when_a_plugin_that_did_not_start_is_mended(fakes: Fakes, place: int) -> None:
    """It holds nothing, so nothing of the first ADD is left once the others are undone."""
    kinds = ["p", "q"]
    for kind in kinds:
        fakes.plugin(kind)
    good = (fakes.bin / kinds[place]).read_bytes()
    (fakes.bin / kinds[place]).write_bytes(b"\x7fELF of another machine")
    with pytest.raises(PluginError, match="another kind of machine") as caught:
        fakes.runtime().add(network(*kinds), WEB)
    assert not hasattr(caught.value, "__notes__")
    assert fakes.runtime().attachments() == ([], [])
    (fakes.bin / kinds[place]).write_bytes(good)
    assert fakes.runtime().add(network(*kinds), WEB) == RESULT


@pytest.mark.parametrize("kind", ["p", "q"])
def test_a_plugin_that_starts_no_more_when_add_is_undone(fakes: Fakes, kind: str) -> None:
    """It may hold something, so the attachment stays remembered."""
    fakes.plugin("p")
    words = """echo '{"msg": "q fails"}'"""
    broken = f"echo no program >{fakes.bin}/{kind}"
    fakes.plugin("q", body=f"[ $CNI_COMMAND != ADD ] || {{ {words}; {broken}; exit 1; }}")
    with pytest.raises(PluginError, match="q fails") as caught:
        fakes.runtime().add(network("p", "q"), WEB)
    assert "failed to DEL" in caught.value.__notes__[0]
    assert len(fakes.runtime().attachments()[0]) == 1


def test_arguments_that_plugins_refuse_leave_nothing_behind(fakes: Fakes) -> None:
    """host-local fails for CNI_ARGS that it does not know, at DEL too. So DEL of an ADD that failed
    is called again without them; that of one that succeeded is not."""
    told = """echo '{"code": 7, "msg": "unknown args"}'; exit 1"""
    fakes.plugin("p", body=f'[ -z "$CNI_ARGS" ] || {{ {told}; }}')
    fakes.plugin("q", body=f"if grep -q runtimeConfig $run/stdin; then {told}; fi")
    caps = {"type": "q", "capabilities": {"x": True}}
    for net, odd in (
        (network("p"), WEB._replace(args=(("FOO", "1"),))),
        (network(caps), WEB._replace(capability_args={"x": 1})),
    ):
        with pytest.raises(PluginError, match="unknown args") as caught:
            fakes.runtime().add(net, odd)
        assert not hasattr(caught.value, "__notes__")
        assert fakes.runtime().attachments() == ([], [])
        fakes.runtime().add(net, WEB)
        with pytest.raises(ExceptionGroup):
            fakes.runtime().delete(net, odd)
        fakes.runtime().delete(net, WEB)


def test_what_a_failed_add_has_left_keeps_no_add_off(fakes: Fakes) -> None:
    """host-device fails at DEL where it has failed at ADD, and says so for as long as the namespace
    exists. A later ADD calls DEL first, and then sees for itself."""
    mended = fakes.directory / "mended"
    failing = f"[ -e {mended} -a $CNI_COMMAND = ADD ] || {{ echo no such device >&2; exit 1; }}"
    fakes.plugin("p", body=failing)
    runtime = fakes.runtime()
    for _ in range(2):
        with pytest.raises(PluginError, match="no such device"):
            runtime.add(network("p"), WEB)
    mended.touch()
    assert runtime.add(network("p"), WEB) == RESULT
    commands = [run.command for run in fakes.seen()]
    assert commands == ["ADD", "DEL", "DEL", "ADD", "DEL", "DEL", "ADD"]
    with pytest.raises(CniError, match="is attached"):
        runtime.add(network("p"), WEB)


@pytest.mark.parametrize("broken", ["ADD", "DEL"])
def test_delete_again_asks_only_plugins_that_have_failed(fakes: Fakes, broken: str) -> None:
    """host-device fails at a second DEL. libcni would have stopped before its first, so there the
    attachment goes once the plugin after it is mended."""
    asked, mended = fakes.directory / "asked", fakes.directory / "mended"
    twice = f"[ $CNI_COMMAND != DEL ] || mkdir {asked} || exit 1"
    fakes.plugin("p", body=twice)
    failing = f"[ -e {mended} ] || [ $CNI_COMMAND != DEL -a $CNI_COMMAND != {broken} ] || exit 1"
    fakes.plugin("q", body=failing)
    runtime, net = fakes.runtime(), network("p", "q")
    if broken == "ADD":
        with pytest.raises(PluginError, match="failed to ADD"):
            runtime.add(net, WEB)
    else:
        runtime.add(net, WEB)
    with pytest.raises(ExceptionGroup):
        runtime.delete(net, WEB)
    mended.touch()
    runtime.delete(net, WEB)
    kinds = [run.kind for run in fakes.seen("DEL")]
    assert kinds == ["q", "p", "q", *(["q"] if broken == "ADD" else [])]
    assert runtime.attachments() == ([], [])
    asked.rmdir()
    runtime.add(net, WEB)
    runtime.delete(net, WEB)
    assert [run.kind for run in fakes.seen("DEL")] == [*kinds, "q", "p"]


def test_what_was_deleted_of_another_network_is_asked_again(fakes: Fakes) -> None:
    """The file was changed between the two DELs."""
    fakes.plugin("p")
    fakes.plugin("r")
    fakes.failing("q", "DEL")
    runtime = fakes.runtime()
    runtime.add(network("p", "q"), WEB)
    with pytest.raises(ExceptionGroup):
        runtime.delete(network("p", "q"), WEB)
    runtime.delete(network("r", "p"), WEB)
    assert [run.kind for run in fakes.seen("DEL")] == ["q", "p", "p", "r"]


def test_text_file_busy_is_waited_for(fakes: Fakes) -> None:
    """An installer that is writing the plugin; the kernel refuses to run it until it is done."""
    (fakes.bin / "p").write_bytes(Path("/bin/true").read_bytes())
    (fakes.bin / "p").chmod(0o755)
    busy: list[Run] = []
    fakes.plugin("q")
    with open(fakes.bin / "p", "r+b"):
        runtime = fakes.runtime(trace=busy.append)
        thread = threading.Thread(target=runtime.delete, args=(network("p"), WEB))
        thread.start()
        assert eventually(lambda: (fakes.cache / "locks" / "container-web").exists())
        thread.join(0.1)
        assert thread.is_alive()
        assert not busy
    thread.join()
    assert [run.status for run in busy] == [0]


def test_an_answer_without_end_is_bounded(fakes: Fakes) -> None:
    error = failure(fakes, "[ $CNI_COMMAND != ADD ] || exec yes")
    assert f"more than {OUTPUT_LIMIT} bytes" in error.message


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_words_of_any_length_are_no_failure(
    fakes: Fakes, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin may log all it does to stderr, and print what it likes at DEL. The end is kept."""
    monkeypatch.setattr(process, "OUTPUT_LIMIT", LITTLE)
    stream = "stderr" if command == "ADD" else "stdout"
    fakes.plugin("p", body=f"[ $CNI_COMMAND != {command} ] || {{ {LOTS}; }} >/dev/{stream}")
    runs: list[Run] = []
    runtime = fakes.runtime(trace=runs.append)
    runtime.add(network("p"), WEB)
    runtime.delete(network("p"), WEB)
    [said] = [getattr(run, stream) for run in runs if run.command == command]
    assert said[-9:] == "xthe end\n"
    assert LITTLE / 2 < len(said) <= LITTLE


def test_an_error_after_many_words_is_read(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "OUTPUT_LIMIT", LITTLE)
    words = """echo '{"code": 7, "msg": "bad"}'; exit 1"""
    error = failure(fakes, f"{{ {LOTS}; }} >&2; {words}")
    assert (error.code, error.message) == (7, "bad")
    assert len(error.stderr) <= LITTLE


def test_no_exit_ends_the_process_group(fakes: Fakes) -> None:
    """At the deadline the plugin is killed with all that it started."""
    pids = fakes.directory / "pids"
    told = f"echo $$ $! >{pids}.new; mv {pids}.new {pids}"
    fakes.plugin("p", body=f"[ $CNI_COMMAND = DEL ] || {{ sleep 1000 & {told}; wait; }}")
    # It is to have begun by then, which takes longer on a busy machine.
    for seconds in (0.3, 3, 30):
        error = failure(fakes, timeout=seconds)
        assert f"did not end within {seconds} s" in error.message
        if pids.exists():
            break
    for pid in pids.read_text().split():
        assert eventually(lambda pid=pid: not is_running(int(pid)))  # type: ignore[misc]


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_daemon_left_behind_holds_nothing_up(fakes: Fakes) -> None:
    """A plugin may start one, which keeps the pipes and the locks' descriptors open."""
    pid = fakes.directory / "pid"
    fakes.plugin("p", body=f"[ $CNI_COMMAND != ADD ] || {{ sleep 1000 & echo $! >{pid}; }}")
    try:
        fakes.runtime().add(network("p"), WEB)
        fakes.runtime(timeout=60).delete(network("p"), WEB)
        fakes.runtime(timeout=60).gc(network("p"), [])
        assert is_running(int(pid.read_text()))
    finally:
        os.kill(int(pid.read_text()), 9)


def test_input_that_is_not_read(fakes: Fakes) -> None:
    """A plugin may answer without reading, however much there is."""
    fakes.script("p", "echo '{}'")
    big = network({"type": "p", "padding": "x" * (1 << 20)})
    assert fakes.runtime().add(big, WEB) == {"cniVersion": "1.1.0"}


def test_big_input_and_output(fakes: Fakes) -> None:
    result = {**RESULT, "padding": "x" * 100_000}
    (fakes.directory / "result").write_text(f"{result}".replace("'", '"'))
    fakes.script("p", f"cat >{fakes.directory}/stdin; cat {fakes.directory}/result")
    big = network({"type": "p", "padding": "x" * (1 << 20)})
    assert fakes.runtime().add(big, WEB) == result
    assert (fakes.directory / "stdin").stat().st_size > 1 << 20


def test_closed_standard_descriptors(fakes: Fakes) -> None:
    """A daemon that closed 0, 1 and 2 can run plugins all the same."""
    fakes.plugin("p")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for fd in range(3):
                os.close(fd)
            fakes.runtime().add(network("p"), WEB)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_signals_are_as_after_login(fakes: Fakes) -> None:
    """Python ignores SIGPIPE; a plugin's pipelines would hang if it did too."""
    fakes.plugin("p", body=f"grep SigIgn /proc/self/status >{fakes.directory}/signals")
    fakes.runtime().add(network("p"), WEB)
    ignored = int((fakes.directory / "signals").read_text().split()[1], 16)
    assert not ignored & 1 << 12


def test_trace_shows_every_run(fakes: Fakes) -> None:
    runs: list[Run] = []
    fakes.plugin("a", body="echo log >&2")
    fakes.failing("b", "ADD")
    with pytest.raises(PluginError):
        fakes.runtime(trace=runs.append).add(network("a", "b"), WEB)
    assert [(run.plugin, run.command, run.status) for run in runs] == [
        ("a", "ADD", 0),
        ("b", "ADD", 1),
        ("b", "DEL", 0),
        ("a", "DEL", 0),
    ]
    assert runs[0].stderr == "log\n"
    assert runs[0].environment["CNI_IFNAME"] == "eth0"
    assert '"name": "net"' in runs[0].stdin
    assert "10.1.0.5" in runs[0].stdout
    assert (runs[0].problem, runs[1].problem) == ("", "b fails")


def test_an_error_that_says_nothing_has_its_exit_status(fakes: Fakes) -> None:
    fakes.script("p", """echo '{"code": 0, "msg": ""}'; [ $CNI_COMMAND = DEL ] || exit 3""")
    with pytest.raises(PluginError, match="exit status 3, with an empty error message"):
        fakes.runtime().add(network("p"), WEB)


def test_no_answer_to_version(fakes: Fakes) -> None:
    fakes.script("p", "exit 0")
    (problem,) = fakes.runtime().validate(network("p"))
    assert problem.endswith("failed to VERSION: it printed no answer")
    with pytest.raises(PluginError, match=r"^plugin 'p' failed to VERSION: it printed"):
        fakes.runtime().version("p")
