"""The CRI as a kubelet speaks it (runtime.v1 of k8s.io/cri-api's api.proto, which has the fields'
numbers), to a containerd."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tests.platforms.containerd import IMAGE
from tests.platforms.portforward import Forwarded
from tests.platforms.protobuf import Message, decode, encode

RUNNING, EXITED = 1, 2
_SECONDS = 60


class Output(NamedTuple):
    stdout: str
    stderr: str
    status: int


class Cri:
    """Calls of the runtime service. Sandboxes and containers are named by their ids."""

    def __init__(self, socket: Path, logs: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._logs = logs
        self._configs: dict[str, Message] = {}

    def close(self) -> None:
        self._channel.close()

    def run_sandbox(
        self,
        name: str,
        handler: str = "tapwright",
        ports: Mapping[int, int] | None = None,
        cgroup_parent: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """`ports` from the host's to the container's; `cgroup_parent` the pod's control group."""
        config = self._sandbox_config(name, ports or {})
        config[7] = [{1: key, 2: value} for key, value in (annotations or {}).items()]
        config[8] = {1: cgroup_parent, **config[8]}
        reply = self._call("RunPodSandbox", {1: config, 2: handler}, _SECONDS)
        sandbox = str(reply[1][0].decode())
        self._configs[sandbox] = config
        return sandbox

    def start_sandbox(self, name: str) -> Any:
        """A future, for callers that do not wait until it runs."""
        request = {1: self._sandbox_config(name, {}), 2: "tapwright"}
        return self._method("RunPodSandbox").future(request, timeout=_SECONDS)

    def _sandbox_config(self, name: str, ports: Mapping[int, int]) -> Message:
        """Containers of a pod share their pid namespace only when they ask for that."""
        (self._logs / name).mkdir(exist_ok=True)
        return {
            1: {1: name, 2: f"uid-{name}", 3: "tests"},
            2: name,
            3: str(self._logs / name),
            4: {1: ["10.97.0.1"], 2: ["example.org"]},
            5: [{2: inner, 3: outer} for outer, inner in ports.items()],
            8: {2: {1: {2: 1}}},
        }

    def address(self, sandbox: str) -> str:
        status = decode(self._call("PodSandboxStatus", {1: sandbox})[1][0])
        return str(decode(status[5][0])[1][0].decode())

    def create(
        self,
        sandbox: str,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        mounts: Sequence[tuple[str, Path, bool]] = (),
        memory: int = 0,
        seccomp: Message | None = None,
    ) -> str:
        """`mounts` are (path in the container, path on the host, read-only), `memory` in bytes
        with 0 for no limit, `seccomp` a SecurityProfile."""
        context: Message = {3: {2: 1}} | ({} if seccomp is None else {15: seccomp})
        config: Message = {
            1: {1: name},
            2: {1: IMAGE},
            3: list(command),
            6: [{1: key, 2: value} for key, value in (environment or {}).items()],
            7: [{1: inner, 2: str(outer), 3: int(ro)} for inner, outer, ro in mounts],
            11: f"{name}.log",
            15: {1: {4: memory}, 2: context},
        }
        request: Message = {1: sandbox, 2: config, 3: self._configs[sandbox]}
        return str(self._call("CreateContainer", request)[1][0].decode())

    def start(self, container: str) -> None:
        self._call("StartContainer", {1: container})

    def run(self, sandbox: str, name: str, *command: str, **settings: Any) -> str:
        """Create and start."""
        container = self.create(sandbox, name, command, **settings)
        self.start(container)
        return container

    def resize(self, container: str, memory: int, quota: int) -> None:
        """In place: bytes, and microseconds of each 100 ms."""
        self._call("UpdateContainerResources", {1: container, 2: {1: 100_000, 2: quota, 4: memory}})

    def exec(self, container: str, *command: str) -> Output:
        reply = self._call("ExecSync", {1: container, 2: list(command), 3: _SECONDS})
        stdout, stderr = (reply.get(number, [b""])[0].decode() for number in (1, 2))
        return Output(stdout, stderr, reply.get(3, [0])[0])

    def start_exec(self, container: str, *command: str) -> Any:
        """A future, for callers that do not wait until it ends."""
        request = {1: container, 2: list(command), 3: _SECONDS}
        return self._method("ExecSync").future(request, timeout=_SECONDS)

    def forward(self, sandbox: str, port: int) -> Forwarded:
        """A connection to a port of a pod, as `kubectl port-forward` makes it."""
        reply = self._call("PortForward", {1: sandbox, 2: port})
        return Forwarded(reply[1][0].decode())

    def state(self, container: str) -> tuple[int, int]:
        """(state, exit status)."""
        status = decode(self._call("ContainerStatus", {1: container})[1][0])
        return status.get(3, [0])[0], status.get(7, [0])[0]

    def reason(self, container: str) -> str:
        """Why it has ended, in a word."""
        status = decode(self._call("ContainerStatus", {1: container})[1][0])
        return str(status.get(10, [b""])[0].decode())

    def log(self, pod: str, container: str) -> list[tuple[str, str]]:
        """(stream, line) as the kubelet finds them."""
        lines = (self._logs / pod / f"{container}.log").read_text().splitlines()
        return [(stream, text) for _, stream, _, text in (line.split(" ", 3) for line in lines)]

    def pod_usage(self, sandbox: str) -> tuple[int, int]:
        """(ns of processors, bytes of the working set) of a pod, as `crictl statsp` shows them."""
        stats = decode(self._call("PodSandboxStats", {1: sandbox})[1][0])
        return _usage(decode(stats[2][0]), 1, 2)

    def container_usage(self, container: str) -> tuple[int, int]:
        """The same of a container, as `crictl stats` shows them."""
        stats = decode(self._call("ContainerStats", {1: container})[1][0])
        return _usage(stats, 2, 3)

    def stop(self, container: str, seconds: int) -> None:
        self._call("StopContainer", {1: container, 2: seconds}, seconds + _SECONDS)

    def remove(self, container: str) -> None:
        self._call("RemoveContainer", {1: container})

    def remove_sandbox(self, sandbox: str) -> None:
        """As the kubelet ends a pod; its containers go with it. It tries again when containerd's
        shim ends just when containerd speaks with it, for its sandbox has ended."""
        try:
            self._call("StopPodSandbox", {1: sandbox}, _SECONDS)
        except grpc.RpcError as error:
            if "ttrpc: closed" not in str(error):
                raise
            self._call("StopPodSandbox", {1: sandbox}, _SECONDS)
        self._call("RemovePodSandbox", {1: sandbox}, _SECONDS)

    def remove_all(self) -> None:
        for sandbox in self._call("ListPodSandbox", {}).get(1, []):
            self.remove_sandbox(decode(sandbox)[1][0].decode())

    def _call(self, method: str, request: Message, seconds: int = _SECONDS) -> dict[int, list[Any]]:
        reply: dict[int, list[Any]] = self._method(method)(request, timeout=seconds)
        return reply

    def _method(self, name: str) -> Any:
        return self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{name}",
            request_serializer=encode,
            response_deserializer=decode,
        )


def _usage(stats: dict[int, list[Any]], cpu: int, memory: int) -> tuple[int, int]:
    """From CpuUsage and MemoryUsage, each with a UInt64Value as its second field."""
    found = [decode(decode(stats[field][0])[2][0]).get(1, [0])[0] for field in (cpu, memory)]
    return found[0], found[1]
