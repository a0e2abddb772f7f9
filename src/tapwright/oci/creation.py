"""Makes a container, and its sandbox unless the container joins one."""

import os
import time
from contextlib import closing, contextmanager

from tapwright.agent.protocol import SHARE
from tapwright.command import LOG_LEVEL_VARIABLE
from tapwright.errors import (
    BundleError,
    ContainerExistsError,
    ContainerStateError,
    TapwrightError,
    UnknownRequestError,
)
from tapwright.linux import files
from tapwright.oci import (
    annotations,
    cgroup,
    guest,
    hooks,
    life,
    memory,
    mounts,
    net_devices,
    oom,
    pods,
    seccomp,
    shim,
    size,
    state,
    stdio,
    sysctls,
    view,
)
from tapwright.oci import bundle as bundles
from tapwright.oci.bundle import Bundle
from tapwright.oci.log import Log
from tapwright.oci.state import Container, Held
from tapwright.sandbox import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from tapwright.config import Config
    from tapwright.sandbox.launching import Launch

_EARLY_HOOKS = ("prestart", "createRuntime", "createContainer")
_LATE_HOOKS = ("poststart", "poststop")
_SHARED_AT_ONCE = 200  # a message has 253 descriptors at most (net/core/scm.c: SCM_MAX_FD)


class Wish:
    """The caller's request: a container of that id from the bundle in a directory. Empty paths are
    none; `detached` says that the caller does not wait for the container. `caller` is the pid of
    this process's parent, if that must delete the container: if it dies before the container
    exists, everything is taken back. 0 for a caller without that duty."""

    def __init__(
        self,
        root: str,
        container_id: str,
        directory: str,
        pid_file: str = "",
        console_socket: str = "",
        configuration: str = "",
        detached: bool = True,
        caller: int = 0,
    ) -> None:
        self.root = root
        self.id = container_id
        self.directory = directory
        self.pid_file = pid_file
        self.console_socket = console_socket
        self.configuration = configuration
        self.detached = detached
        self.caller = caller


def create(wish: Wish, log: Log) -> tuple[Container, stdio.Stdio]:
    """Make the container, and its shim; the caller must close the Stdio. A failure takes everything
    back. Raises TapwrightError."""
    bundle = bundles.load(wish.directory)
    owner = pods.owner_of(wish.root, bundle)
    container = Container(
        id=wish.id,
        bundle=bundle.directory,
        rootfs=bundle.rootfs,
        annotations=bundle.annotations,
        caller=wish.caller,
        boot=state.boot(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        sandbox=owner.sandbox if owner else pods.sandbox_id(wish.id),
        owns=owner is None,
        netns=owner.netns if owner else "",
        hooks={
            kind: bundle.config["hooks"][kind]
            for kind in _LATE_HOOKS
            if bundle.config.get("hooks", {}).get(kind)
        },
    )
    with closing(_claimed(wish.root, container, log)) as held:
        making = _Making(wish, bundle, container, owner, held, log)
        try:
            return container, making.run()
        except BaseException:
            making.undo()
            raise


def _claimed(root: str, container: Container, log: Log) -> Held:
    """Claim the container's id. Delete a container of that id from before a reboot first: platforms
    expect that a runtime knows nothing after a reboot."""
    try:
        return state.claim(root, container)
    except ContainerExistsError:
        if state.load(root, container.id).boot == container.boot:
            raise
    life.delete(root, container.id, force=True, log=log)
    return state.claim(root, container)


class _Making:
    def __init__(
        self,
        wish: Wish,
        bundle: Bundle,
        container: Container,
        owner: Container | None,
        held: Held,
        log: Log,
    ) -> None:
        self._wish = wish
        self._bundle = bundle
        self._container = container
        self._owner = owner
        self._held = held
        self._log = log
        self._sandbox = client.named(wish.root, container.sandbox)
        self._stdio: stdio.Stdio | None = None
        self._filter: seccomp.Making | None = None

    def run(self) -> stdio.Stdio:
        if self._owner:
            configuration = self._configuration()
            shared, of_guest = self._plan(configuration)
            self._make_cgroup(configuration)
        else:
            from tapwright.sandbox import launching

            with launching.ahead(self._wish.root) as launch:
                configuration = annotations.configured(
                    self._configuration(), self._bundle.annotations, self._log
                )
                shared, of_guest = self._plan(configuration)
                self._make_cgroup(configuration)
                self._make_sandbox(configuration, of_guest, launch)
        cgroup.bound(self._container, self._bundle, self._log)
        if devices := net_devices.wanted(self._bundle):
            self._sandbox.call("take_devices", devices=devices)
        self._share(shared, of_guest)
        made = self._start_process(of_guest, shared)
        self._run_hooks()
        self._follow_resolvers(shared)
        life.sync(self._sandbox, self._container)
        if settings := sysctls.of_network(self._bundle):
            # After the hooks, which may have made the interfaces.
            self._sandbox.call("set_sysctls", sysctls=settings)
        if self._wish.pid_file:
            shim.write_pid_file(self._wish.pid_file, self._container.pid)
        self._check_caller()
        return made

    def _follow_resolvers(self, shared: "Sequence[mounts.Shared]") -> None:
        """Serve docker's own name server, which is in the sandbox's network namespace. The
        container's resolv.conf names it."""
        for one in shared:
            if self._container.netns and one.destination == "/etc/resolv.conf":
                self._sandbox.call_if_known(
                    "follow_resolvers", self._log.warn, resolv_conf=one.source
                )

    def _check_caller(self) -> None:
        """Fail when the caller has died. Its platform then calls `delete`, which may have run
        before the container existed; a later `delete` finds the container locked, and waits."""
        if self._wish.caller and os.getppid() != self._wish.caller:
            raise ContainerStateError(
                "the process that asked for the container died before the container was made"
            )

    def undo(self) -> None:
        """Take everything back. What fails is left to `delete`, which platforms call."""
        if self._stdio:
            self._stdio.close()
        try:
            life.take_down(self._wish.root, self._container, force=True)
            life.run_poststop(self._container, self._log)
            self._held.discard()
        except (TapwrightError, OSError) as error:
            self._log.warn(f"not everything could be taken back: {error}")

    def _configuration(self) -> "Config":
        from tapwright import config

        found = config.load(self._wish.configuration or None)
        for warning in found.warnings:
            self._log.warn(f"{found.source}: {warning}")
        return found

    def _plan(self, configuration: "Config") -> "tuple[list[mounts.Shared], dict[str, Any]]":
        """(files that the guest shares with the host, the guest's configuration). Finds mistakes
        before anything is made."""
        if net_devices.wanted(self._bundle) and configuration.runtime.disable_new_netns:
            raise BundleError(
                "linux.netDevices: with disable_new_netns the container has no network namespace "
                "to move interfaces into; set disable_new_netns = false"
            )
        of_sandbox = (self._owner or self._container).annotations
        profile = None
        if not annotations.disable_guest_seccomp(configuration, of_sandbox):
            profile = seccomp.of_bundle(self._bundle)
        shared, bound = mounts.plan(self._bundle, self._container.id, self._log)
        bound += annotations.resolv_conf_mount(of_sandbox, bound)
        of_guest = guest.configuration(
            self._bundle,
            self._container.id,
            f"{SHARE}/{self._container.id}/{mounts.ROOTFS}",
            bound,
            pods.joined_namespaces(self._wish.root, self._bundle, self._owner),
            profile.of_runtime if profile else None,
            self._log,
        )
        if profile:
            self._filter = seccomp.Making(profile)
        return shared, of_guest

    def _make_cgroup(self, configuration: "Config") -> None:
        cgroup.make(self._container, self._bundle, configuration, self._held, self._log)

    def _make_sandbox(
        self, configuration: "Config", of_guest: "dict[str, Any]", launch: "Launch | None"
    ) -> None:
        from tapwright.linux import netns
        from tapwright.sandbox import lifecycle, planning

        network = self._bundle.namespace("network")
        in_host = configuration.runtime.disable_new_netns
        # Docker names the host's namespace by a path.
        if (network is None or netns.is_own(network)) and not in_host:
            raise BundleError(
                "a VM can't have the host's network (--network host); choose another "
                "network, or none"
            )
        if network and in_host:
            self._log.warn(f"with disable_new_netns the namespace {network} is ignored")
        default = configuration.qemu
        shared_memory = memory.asked_for(of_guest["mounts"])
        dns = annotations.dns(self._bundle.annotations)
        spec = planning.plan(
            configuration,
            planning.Wish(
                netns="" if in_host else network or "",
                memory_mib=size.memory_mib(self._bundle, default.default_memory, shared_memory),
                vcpus=size.vcpus(self._bundle, default.default_vcpus, os.sched_getaffinity(0)),
                share=True,
                cgroup=self._container.cgroup,
                first=self._container.id,
            ),
            lambda text: None,
        )
        spec.dns = dns
        spec.oom_score_adj = self._bundle.process.get("oomScoreAdj", 0)
        spec.bounds_host = self._container.cgroup_kind in (cgroup.OWN, cgroup.PLATFORMS)
        if pods.is_pause(self._bundle):
            pod = size.claim(self._bundle)
            spec.is_pod, spec.pod_memory, spec.pod_cpus = True, pod.memory, pod.cpus
        cgroup.allow_for(self._container, self._bundle, spec.machine.memory_mib)
        if configuration.runtime.enable_debug:
            os.environ[LOG_LEVEL_VARIABLE] = "debug"
        record = lifecycle.run(
            self._wish.root,
            self._container.sandbox,
            spec,
            self._tell_progress,
            launch=launch,
            warn=self._log.warn,
        )
        self._container.netns = record.netns
        self._held.save(self._container)

    def _tell_progress(self, text: str) -> None:
        """Leave an error in the log in case the platform kills this call during the step, which
        takes seconds. The step goes on all the same if it makes a template."""
        self._log.fails_unless(
            f"the platform gave up during a step that takes seconds: {text}; try again"
        )

    def _share(self, shared: "Sequence[mounts.Shared]", of_guest: "dict[str, Any]") -> None:
        paths = self._carry_sockets([one for one in shared if one.socket])
        files = [one for one in shared if one.name not in paths]
        for first in range(0, len(files), _SHARED_AT_ONCE):
            some = files[first : first + _SHARED_AT_ONCE]
            with mounts.cloned(some) as descriptors:
                paths |= self._sandbox.share(
                    self._container.id,
                    dict(zip((one.name for one in some), descriptors, strict=True)),
                    apart=[one.name for one in some if one.is_apart],
                    followed=[one.name for one in some if one.name != mounts.ROOTFS],
                )
        mounts.moved(of_guest, self._container.id, paths)

    def _carry_sockets(self, sockets: "Sequence[mounts.Shared]") -> dict[str, str]:
        if not sockets:
            return {}
        with mounts.cloned(sockets) as descriptors:
            try:
                return self._sandbox.carry_sockets(
                    self._container.id,
                    [one.name for one in sockets],
                    [one.socket for one in sockets],
                    descriptors,
                )
            except UnknownRequestError as error:
                # A member of a pod that an older version has started: they are files there.
                self._log.warn(f"nobody can connect to sockets of the host: {error}")
                return {}

    def _start_process(
        self, of_guest: "dict[str, Any]", shared: "Sequence[mounts.Shared]"
    ) -> stdio.Stdio:
        made = stdio.of_process(
            self._bundle.process, self._wish.console_socket, self._wish.detached
        )
        self._stdio = made
        container = self._container
        if self._filter:
            of_guest["annotations"] = self._filter.annotation()
        connection, first = self._sandbox.converse(
            "create_container",
            made.descriptors,
            id=container.id,
            config=of_guest,
            terminal=made.terminal is not None,
            null_stdin=made.null_stdin,
            oom=oom.of_caller(container.id, self._wish.root, self._bundle.directory, os.getppid()),
        )
        with connection:
            container.guest_pid = first["created"]["pid"]
            with (
                self._netns() as netns,
                view.of_container(shared, mounts.in_memory(of_guest["mounts"])) as files,
            ):
                container.pid = shim.start(
                    connection, container.id, made.terminal, made.own, netns, files
                )
            cgroup.enter(container, container.pid)
            container.pid_started = state.start_of(container.pid)
            self._held.save(container)
        return made

    @contextmanager
    def _netns(self) -> "Iterator[str]":
        """The network namespace of the shim. Where the sandbox has none (`disable_new_netns`), an
        empty one: hooks get the shim's pid, and would otherwise change the host's namespace
        (docker's libnetwork-setkey turns IPv6 off)."""
        if self._container.netns:
            yield self._container.netns
            return
        from tapwright.linux import netns

        with files.closing(netns.nameless()) as fd:
            yield f"/proc/self/fd/{fd}"

    def _run_hooks(self) -> None:
        wanted = self._bundle.config.get("hooks", {})
        oci_state = state.oci_state(self._container, state.CREATING)
        for kind in _EARLY_HOOKS:
            # Those of the container's namespaces have here its network's alone.
            inside = kind == "createContainer"
            netns = self._container.netns if inside else ""
            # By runc, it has entered the bundle by then, and then the root filesystem, with the
            # environment of the container's process.
            directory = self._bundle.rootfs if inside else self._bundle.directory
            environment = self._bundle.process.get("env", []) if inside else None
            hooks.run(kind, wanted.get(kind, ()), oci_state, netns, directory, environment)
