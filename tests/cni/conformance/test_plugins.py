"""Sections 2, 4 and 5: what plugins owe a runtime, held by those written with our framework."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cni.fakes import ALL_VERSIONS, RESULT, Fakes
from tests.cni.written import SOURCE, WrittenPlugin

pytestmark = pytest.mark.unit

CONFIG = {"cniVersion": "1.1.0", "name": "net", "type": "p"}
WITH_IPAM = CONFIG | {"ipam": {"type": "addresses", "range": "10.1.0.0/16"}, "odd": [1]}
IPAM_RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/16"}]}


def written(fakes: Fakes, **functions: str) -> WrittenPlugin:
    return WrittenPlugin(fakes.bin / "p", **functions)


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_version_success(fakes: Fakes, version: str) -> None:
    """VERSION Success: the version of the input, and the list of the supported ones."""
    answer = written(fakes).run("VERSION", {"cniVersion": version}, CNI_IFNAME="", CNI_NETNS="")
    assert answer == (0, {"cniVersion": version, "supportedVersions": ALL_VERSIONS}, "")


@pytest.mark.parametrize("stdin", [b"", b"no JSON", b"[]", b'{"cniVersion": null}'])
def test_version_is_told_for_any_input(fakes: Fakes, stdin: bytes) -> None:
    """As by libcni's skel, which does not read it."""
    answer = written(fakes).run("VERSION", stdin)
    assert answer == (0, {"cniVersion": "1.1.0", "supportedVersions": ALL_VERSIONS}, "")


def test_version_does_not_wait_for_the_end_of_input(fakes: Fakes) -> None:
    """A script may ask with a stdin that nobody closes."""
    path = written(fakes).path
    reader, writer = os.pipe()
    try:
        os.write(writer, b'{"cniVersion": "0.4.0"}')
        done = subprocess.run(
            [str(path)],
            stdin=reader,
            env={**os.environ, "PYTHONPATH": SOURCE, "CNI_COMMAND": "VERSION"},
            capture_output=True,
            timeout=60,
            check=True,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert json.loads(done.stdout)["cniVersion"] == "0.4.0"


def test_keys_of_the_input_are_read_as_by_go(fakes: Fakes) -> None:
    """Capitals do not matter, and null counts as missing: files are tried with other plugins."""
    fakes.plugin("ipam", add={"ips": [{"address": "10.1.0.5/16"}]})
    plugin = WrittenPlugin(fakes.bin / "p", add="return request.ipam()")
    odd = {"CNIVersion": "1.0.0", "Name": "net", "IPAM": {"Type": "ipam"}, "prevResult": None}
    assert plugin.run("ADD", odd).output["ips"] == [{"address": "10.1.0.5/16"}]
    oldest = plugin.run("ADD", {"cniVersion": None, "name": "net", "ipam": {"type": "ipam"}})
    assert oldest.output == {"cniVersion": "0.1.0", "ip4": {"ip": "10.1.0.5/16"}}


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID"),
        ("ADD", "CNI_NETNS"),
        ("ADD", "CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID"),
        ("CHECK", "CNI_NETNS"),
        ("CHECK", "CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID"),
        ("DEL", "CNI_IFNAME"),
        ("GC", "CNI_PATH"),
    ],
)
def test_required_parameters(fakes: Fakes, command: str, missing: str) -> None:
    """Required environment parameters; code 4 names the variable."""
    answer = written(fakes).run(command, **{missing: ""})
    assert answer.status == 1
    assert answer.output["code"] == 4
    assert missing in answer.output["msg"]


def test_optional_parameters(fakes: Fakes) -> None:
    """Optional environment parameters: DEL does without a namespace, all without ARGS."""
    assert written(fakes).run("DEL", CNI_NETNS="").status == 0
    assert written(fakes).run("STATUS", CNI_CONTAINERID="", CNI_IFNAME="", CNI_PATH="").status == 0
    assert written(fakes).run("GC", CNI_CONTAINERID="", CNI_IFNAME="").status == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_COMMAND", "FLY"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "sixteen-letters-"),
    ],
)
def test_invalid_parameters(fakes: Fakes, variable: str, value: str) -> None:
    """Error, code 4: the message has the names of invalid variables."""
    answer = written(fakes).run("ADD", **{variable: value})
    assert (answer.status, answer.output["code"]) == (1, 4)
    assert variable in answer.output["msg"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b'{"name": "net", "cniVersion": "1.1.0", "x": NaN}', 6),
        ({"cniVersion": "1.1.0"}, 7),
        ({"cniVersion": "1.1.0", "name": "a/b"}, 7),
        ({"cniVersion": "9.0.0", "name": "net"}, 1),
    ],
)
def test_error_codes_for_bad_input(fakes: Fakes, config: Any, code: int) -> None:
    """Error: 1 incompatible version, 6 can't be decoded, 7 invalid configuration."""
    answer = written(fakes).run("ADD", config)
    assert (answer.status, answer.output["code"]) == (1, code)


def test_error_object(fakes: Fakes) -> None:
    """Error: version, code, msg and details on stdout; the log goes to stderr."""
    failing = written(
        fakes, add='print("log", file=sys.stderr)\nraise plugin.Error("full", 101, "no lease")'
    )
    answer = failing.run("ADD", CONFIG | {"cniVersion": "0.4.0"})
    assert answer.output == {
        "cniVersion": "0.4.0",
        "code": 101,
        "msg": "full",
        "details": "no lease",
    }
    assert (answer.status, answer.stderr) == (1, "log\n")


def test_unexpected_exceptions_are_errors_too(fakes: Fakes) -> None:
    """Errors: non-zero and an error object, whatever happens inside."""
    answer = written(fakes, add="return 1 / 0").run("ADD")
    assert (answer.status, answer.output["code"]) == (1, 999)
    assert "ZeroDivisionError" in answer.output["msg"]
    assert "Traceback" in answer.stderr


@pytest.mark.parametrize(
    ("command", "oldest"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")]
)
def test_commands_have_a_first_version(fakes: Fakes, command: str, oldest: str) -> None:
    """Released versions: before it, the command is an incompatible version."""
    plugin = written(fakes)
    for version in ALL_VERSIONS:
        answer = plugin.run(command, CONFIG | {"cniVersion": version, "prevResult": {}})
        is_old = ALL_VERSIONS.index(version) < ALL_VERSIONS.index(oldest)
        assert answer.status == is_old
        assert answer.output is None or answer.output["code"] == 1


def test_supported_versions_of_the_plugin(fakes: Fakes) -> None:
    plugin = WrittenPlugin(fakes.bin / "p", main='add, delete, versions=["1.0.0"]')
    answer = plugin.run("ADD")
    assert answer.output["code"] == 1
    assert "1.0.0" in answer.output["details"]


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_add_success_in_the_version_of_the_input(fakes: Fakes, version: str) -> None:
    """ADD Success: `cniVersion` is that of the input, and the shape is that version's."""
    answer = written(fakes, add=f"return {RESULT!r}").run("ADD", CONFIG | {"cniVersion": version})
    assert answer.status == 0
    assert answer.output["cniVersion"] == version
    if version < "0.3.0":
        assert answer.output["ip4"]["ip"] == "10.1.0.5/16"
    else:
        assert answer.output["ips"][0]["address"] == "10.1.0.5/16"


@pytest.mark.parametrize("version", ALL_VERSIONS[2:])
def test_previous_result_is_passed_through(fakes: Fakes, version: str) -> None:
    """ADD Success: a plugin that changes nothing puts out what it was given."""
    previous = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x", "vendor": 1}],
        "ips": [{"address": "fd00::5/64", "interface": 0}],
        "dns": {"nameservers": ["fd00::1"]},
    }
    answer = written(fakes).run("ADD", CONFIG | {"cniVersion": version, "prevResult": previous})
    assert answer.output["ips"][0].pop("version", "6") == "6"
    assert answer.output == previous


def test_previous_result_is_modified(fakes: Fakes) -> None:
    change = 'request.prev_result["interfaces"][0]["mtu"] = 1400\nreturn request.prev_result'
    answer = written(fakes, add=change).run("ADD", CONFIG | {"prevResult": RESULT})
    assert answer.output["interfaces"][0]["mtu"] == 1400
    assert answer.output["ips"] == RESULT["ips"]


def test_wrong_results_are_not_put_out(fakes: Fakes) -> None:
    answer = written(fakes, add='return {"ips": [{"address": 7}]}').run("ADD")
    assert (answer.status, answer.output["code"]) == (1, 999)


def test_delete_without_previous_result(fakes: Fakes) -> None:
    """DEL: no error where `prevResult` is empty, nor when called again."""
    plugin = written(fakes, delete="assert request.prev_result is None")
    assert plugin.run("DEL", CONFIG).status == 0
    assert plugin.run("DEL", CONFIG | {"prevResult": {}}).status == 0
    assert plugin.run("DEL", CONFIG | {"prevResult": None}).status == 0


def test_gc_gets_the_valid_attachments(fakes: Fakes) -> None:
    """GC: `cni.dev/valid-attachments`; no output on success."""
    told = "assert request.valid_attachments == [('web', 'eth0')], request.valid_attachments"
    plugin = WrittenPlugin(fakes.bin / "p", main="add, delete, gc=gc", gc=told)
    valid = {"cni.dev/valid-attachments": [{"containerID": "web", "ifname": "eth0"}]}
    assert plugin.run("GC", CONFIG | valid) == (0, None, "")
    assert plugin.run("GC", CONFIG).status == 1
    # The specification's first name of the key, which a runtime may know alone.
    first = {"cni.dev/attachments": valid["cni.dev/valid-attachments"]}
    assert plugin.run("GC", CONFIG | first) == (0, None, "")
    for wrong in ("web", [{"containerID": "web"}], [3]):
        answer = plugin.run("GC", CONFIG | {"cni.dev/valid-attachments": wrong})
        assert (answer.status, answer.output["code"]) == (1, 7)


def test_own_namespace_is_refused(fakes: Fakes) -> None:
    """As libcni's skel: the container's namespace can't be the one the plugin runs in."""
    plugin = written(fakes)
    for command in ("ADD", "DEL"):
        answer = plugin.run(command, CNI_NETNS="/proc/self/ns/net")
        assert (answer.status, answer.output["code"]) == (1, 8)
    assert plugin.run("ADD", CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="1").status == 0


def test_about_is_for_people(fakes: Fakes) -> None:
    plugin = WrittenPlugin(fakes.bin / "p", main='add, delete, about="example v1"')
    answer = plugin.run("")
    assert (answer.status, answer.output) == (0, None)
    assert answer.stderr.startswith("example v1\n")


def test_delegate_gets_environment_and_configuration(fakes: Fakes) -> None:
    """Delegated Plugin protocol: all the same environment, the complete configuration;
    its stderr is ours."""
    fakes.plugin("addresses", add=IPAM_RESULT, body="echo said >&2")
    answer = written(fakes, add="return request.ipam()").run("ADD", WITH_IPAM, CNI_ARGS="A=B")
    assert (answer.status, answer.output, answer.stderr) == (0, IPAM_RESULT, "said\n")
    (run,) = fakes.seen()
    assert run.config == WITH_IPAM
    assert run.environment["CNI_ARGS"] == "A=B"
    assert run.environment["CNI_CONTAINERID"] == "web"
    assert run.environment["CNI_PATH"] == str(fakes.bin)


def test_delegate_is_searched_in_cni_path(fakes: Fakes, tmp_path: Path) -> None:
    """Delegated plugin execution procedure: CNI_PATH, in its order, and nothing else."""
    fakes.plugin("addresses", add=IPAM_RESULT)
    plugin = written(fakes, add="return request.ipam()")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert plugin.run("ADD", WITH_IPAM, CNI_PATH=f"{empty}:{fakes.bin}").status == 0
    answer = plugin.run("ADD", WITH_IPAM, CNI_PATH=str(empty))
    assert (answer.status, answer.output["code"]) == (1, 7)
    assert "addresses" in answer.output["msg"]


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS"])
def test_delegates_are_asked_without_a_handler(fakes: Fakes, command: str) -> None:
    """CHECK, "GC", "STATUS": forwarded to delegates, whose errors are passed on."""
    fakes.failing("addresses", command, code=50)
    answer = written(fakes).run(command, WITH_IPAM)
    assert (answer.status, answer.output["code"]) == (1, 50)
    assert [run.command for run in fakes.seen()] == [command]


def test_delegate_gets_delete(fakes: Fakes) -> None:
    """Delegated plugin execution procedure: DEL as well, and its error is returned."""
    fakes.failing("addresses", "DEL", code=111)
    answer = written(fakes, delete="request.ipam()").run("DEL", WITH_IPAM)
    assert (answer.status, answer.output["code"]) == (1, 111)


def test_words_of_a_delegate_are_passed_over(fakes: Fakes) -> None:
    """What a delegate prints on stdout at other commands than ADD is no answer (libcni,
    pkg/invoke/delegate.go)."""
    fakes.plugin("addresses", body="[ $CNI_COMMAND = ADD ] || echo released")
    answer = written(fakes, delete="request.ipam()").run("DEL", WITH_IPAM)
    assert (answer.status, answer.output) == (0, None)
    assert written(fakes).run("CHECK", WITH_IPAM).status == 0


@pytest.mark.parametrize(
    "add", ["return request.ipam()", "request.ipam()\nraise plugin.Error('no veth')"]
)
def test_delegate_is_undone_when_add_fails(fakes: Fakes, add: str) -> None:
    """Delegated plugin execution procedure: DEL of the delegate before the failure is
    returned, be it the delegate's own or the plugin's after it."""
    if "raise" in add:
        fakes.plugin("addresses", add=IPAM_RESULT)
    else:
        fakes.failing("addresses", "ADD")
    assert written(fakes, add=add).run("ADD", WITH_IPAM).status == 1
    assert [run.command for run in fakes.seen()] == ["ADD", "DEL"]


def test_unsupported_fields_are_named(fakes: Fakes) -> None:
    """Error, code 2: the message has the key and the value."""
    refuse = """
for key in set(request.config) - {"cniVersion", "name", "type"}:
    raise plugin.Error(f"unsupported: {key}={request.config[key]!r}", 2)
"""
    answer = written(fakes, add=refuse).run("ADD", CONFIG | {"colour": "red"})
    assert (answer.output["code"], answer.output["msg"]) == (2, "unsupported: colour='red'")


def test_gc_goes_on_and_reports(fakes: Fakes) -> None:
    """GC: remove what can be removed, go on past an error, and report it."""
    for lease in ("web", "old", "stuck"):
        (fakes.directory / lease).touch()
    (fakes.directory / "stuck").unlink()
    (fakes.directory / "stuck").mkdir()
    collect = f"""
valid = [container for container, _ in request.valid_attachments]
errors = []
for lease in ("stuck", "old", "web"):
    if lease not in valid:
        try:
            os.unlink("{fakes.directory}/" + lease)
        except OSError as error:
            errors.append(str(error))
if errors:
    raise plugin.Error("; ".join(errors))
"""
    plugin = WrittenPlugin(fakes.bin / "p", main="add, delete, gc=gc", gc=collect)
    valid = {"cni.dev/valid-attachments": [{"containerID": "web", "ifname": "eth0"}]}
    answer = plugin.run("GC", CONFIG | valid)
    assert (answer.status, "stuck" in answer.output["msg"]) == (1, True)
    assert (fakes.directory / "web").exists()
    assert not (fakes.directory / "old").exists()


def test_status_of_a_plugin(fakes: Fakes) -> None:
    """STATUS: 0 when ready, else an error of code 50 or 51; ADD works whatever it says."""
    full = "raise plugin.Error('no address left', 50)"
    plugin = WrittenPlugin(fakes.bin / "p", main="add, delete, status=status", status=full)
    answer = plugin.run("STATUS")
    assert (answer.status, answer.output["code"]) == (1, 50)
    assert plugin.run("ADD").status == 0
    assert written(fakes).run("STATUS") == (0, None, "")
