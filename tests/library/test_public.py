"""What `import tapwright` shows, and what it costs."""

import json
import subprocess
import sys

import pytest

import tapwright
from tapwright import errors
from tapwright.library.sandbox import Sandbox

pytestmark = pytest.mark.unit

LOADED = """
import json, sys
before = set(sys.modules)
import tapwright
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_members() -> None:
    assert sorted(tapwright.__all__) == [
        *("AgentError", "AsyncNic", "AsyncProcess", "AsyncSandbox", "CommandError"),
        *(
            "CommandTimeoutError",
            "Completed",
            "ConfigError",
            "Error",
            "GuestFileError",
            "HypervisorError",
            "ImageError",
        ),
        *("NetworkError", "Nic", "Process", "Route", "Sandbox", "SandboxExistsError"),
        *("SandboxNotFoundError", "SandboxStateError", "UsageError", "sandboxes"),
    ]
    for name in tapwright.__all__:
        found = getattr(tapwright, name)
        assert found.__doc__
        assert name in dir(tapwright)
    assert tapwright.Sandbox is Sandbox
    with pytest.raises(AttributeError, match="no attribute 'Sandbax'"):
        _ = tapwright.Sandbax


def test_importing_loads_nothing_else() -> None:
    words = [sys.executable, "-c", LOADED]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["tapwright"]


def test_every_error_is_an_error_of_ours() -> None:
    for name in dir(errors):
        found = getattr(errors, name)
        if isinstance(found, type) and issubclass(found, Exception):
            assert issubclass(found, tapwright.Error)
    for name in tapwright.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(tapwright, name), tapwright.Error)


def test_fields_of_errors() -> None:
    failed = tapwright.CommandError(["ls", "/x"], 1, b"", b"ls: /x: No such file\n")
    assert str(failed) == "ls /x ended with status 1: ls: /x: No such file"
    assert (failed.argv, failed.status) == (("ls", "/x"), 1)
    late = tapwright.CommandTimeoutError(["sleep", "9"], 0.5, "some")
    assert str(late) == "sleep 9 was not done after 0.5 s"
    assert isinstance(late, TimeoutError)
    assert (late.stdout, late.timeout) == ("some", 0.5)
    file = tapwright.GuestFileError("/x\x1b", "Is a directory")
    assert str(file) == r"/x\x1b in the guest: Is a directory"
    assert (file.path, file.reason) == ("/x\x1b", "Is a directory")
