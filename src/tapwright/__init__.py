"""Tapwright: the network of secure containers.

    import tapwright

    with tapwright.Sandbox.run("web", networks=["mynet"]) as box:
        print(box.addresses, box.exec(["uname", "-r"]).stdout)

docs/library.md has all of it. This file imports nothing, because the guest's agent and every
short-lived command load it. Its names are loaded when they are used (PEP 562).
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.errors import (
        AgentError,
        CommandError,
        CommandTimeoutError,
        ConfigError,
        GuestFileError,
        HypervisorError,
        ImageError,
        NetworkError,
        SandboxExistsError,
        SandboxNotFoundError,
        SandboxStateError,
        UsageError,
    )
    from tapwright.errors import TapwrightError as Error
    from tapwright.library.asynchronous import AsyncNic, AsyncProcess, AsyncSandbox
    from tapwright.library.nics import Nic, Route
    from tapwright.library.sandbox import Sandbox, sandboxes
    from tapwright.sandbox.execution import Completed, Process

__all__ = [
    "AgentError",
    "AsyncNic",
    "AsyncProcess",
    "AsyncSandbox",
    "CommandError",
    "CommandTimeoutError",
    "Completed",
    "ConfigError",
    "Error",
    "GuestFileError",
    "HypervisorError",
    "ImageError",
    "NetworkError",
    "Nic",
    "Process",
    "Route",
    "Sandbox",
    "SandboxExistsError",
    "SandboxNotFoundError",
    "SandboxStateError",
    "UsageError",
    "sandboxes",
]

_PLACES = {
    "AsyncNic": "library.asynchronous",
    "AsyncProcess": "library.asynchronous",
    "AsyncSandbox": "library.asynchronous",
    "Completed": "sandbox.execution",
    "Nic": "library.nics",
    "Process": "sandbox.execution",
    "Route": "library.nics",
    "Sandbox": "library.sandbox",
    "sandboxes": "library.sandbox",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_PLACES.get(name, 'errors')}")
    found: object = getattr(module, "TapwrightError" if name == "Error" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
