"""Containers in the guest, and the requests about them.

crun does the work, and the agent does not wait for crun: a request that takes time is answered when
it is done. A container is known from the request that creates it until its deletion. A container
whose creator goes away is deleted at once. The files of a container are in a directory of its own
below DIRECTORY.
"""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest import (
    cgroups,
    counters,
    covering,
    crun,
    disk,
    executable,
    files,
    limits,
    network,
    oom,
    propagation,
)
from tapwright.agent.guest.container_process import ContainerProcess
from tapwright.agent.guest.covering import Covers
from tapwright.agent.guest.crun import Crun, Done
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.leftovers import DIRECTORY
from tapwright.agent.guest.memory import Memory
from tapwright.agent.guest.oom_kills import OomKills
from tapwright.agent.guest.propagation import Propagation
from tapwright.agent.guest.refusal import (
    EXISTS,
    FAILED,
    NOT_FOUND,
    STATE,
    RefusedError,
    error_reply,
)
from tapwright.agent.guest.requests import Request
from tapwright.agent.guest.streams import Answer, Process, in_a_child

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"

# The pattern of runc and crun; an id is also the name of a directory.
_ID = re.compile(r"(?!\.{1,2}$)[\w+.-]{1,128}", re.ASCII)
# What ends runc's process before it executes the container's program, with which status: that is a
# program in Go (os/signal, "Default behavior of signals in Go programs"), and crun's is in C.
_ENDS_UNSTARTED = frozenset(
    (
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGABRT),
        *(signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV),
        *(signal.SIGSTKFLT, signal.SIGSYS),
    )
)
_STATUS_UNSTARTED = 2
# systemd's limit on a host: a container may want as many open files as it can have there.
_MOST_FILES = "1073741816"


class Container:
    """A container, and what crun is doing with it at present."""

    def __init__(self, name: str, init: ContainerProcess) -> None:
        self.id = name
        self.cgroup = cgroups.of_container(name)
        self.init = init
        self.status = CREATING
        self.directory = f"{DIRECTORY}/{name}"
        self.oom_score = oom.AS_OTHERS
        self.binds: covering.Binds = []
        self._at_work = 0
        self._when_idle: list[Callable[[], None]] = []
        # Callbacks for the end of a deletion, with "" or the reason of its failure; None before the
        # first request to delete.
        self.deletions: list[Done] | None = None

    def must_be(self, *statuses: str) -> None:
        """Raises RefusedError when the container is in none of these states."""
        if self.deletions is not None:
            raise RefusedError(f"container {self.id!r} is being deleted", STATE)
        if self.status not in statuses:
            wanted = " or ".join(statuses)
            raise RefusedError(f"container {self.id!r} is {self.status}, not {wanted}", STATE)

    def stopped(self) -> None:
        self.status = STOPPED

    def at_work(self) -> Callable[[], None]:
        """Note that crun begins to work on the container. The caller calls the result when crun has
        ended."""
        self._at_work += 1

        def over() -> None:
            self._at_work -= 1
            while not self._at_work and self._when_idle:
                self._when_idle.pop(0)()

        return over

    def when_idle(self, action: Callable[[], None]) -> None:
        self._when_idle.append(action)
        self.at_work()()


class Containers:
    """All containers of the guest. The operations raise RefusedError, OSError."""

    def __init__(self, watch: Watcher, children: Children) -> None:
        self._watch = watch
        self._children = children
        self._crun = Crun(children)
        self._known: dict[str, Container] = {}
        self._memory = Memory()
        self._propagation = Propagation()
        self._covers = Covers()
        self._oom_kills = OomKills(watch)
        self._lingering: list[ContainerProcess] = []
        files.write("/proc/sys/fs/nr_open", _MOST_FILES)
        self.operations: dict[str, Callable[[Request, Answer], Process | None]] = {
            "create_container": self.create,
            "exec_container": self.execute,
            "start_container": self.start,
            "signal_container": self.signal,
            "pause_container": self.pause,
            "resume_container": self.resume,
            "update_container": self.update,
            "container_processes": self.processes,
            "container_statistics": self.statistics,
            "delete_container": self.delete,
            "cover_sockets": self.cover,
        }

    def create(self, request: Request, answer: Answer) -> Process:
        """Make a container of the OCI configuration `config`, with a terminal if `terminal`, or
        with the null device as stdin if `null_stdin`, but do not run its program. The agent chooses
        the control group. A mount may name `memory` as its source, or say that it is of the
        kernel's `modules`, or which `device` it is. `links` are not followed in it, if it says
        so."""
        name, config = request["id"], request["config"]
        if not _ID.fullmatch(name):
            raise RefusedError(f"{name!r} can't be the id of a container", FAILED)
        if name in self._known:
            raise RefusedError(f"there is a container called {name!r} already", EXISTS)
        container = Container(name, self._process(answer, config["process"]))
        config.setdefault("linux", {})["cgroupsPath"] = container.cgroup
        crun.at_random_addresses(config)
        crun.without_options_of_version_1(config)
        os.makedirs(container.directory)
        self._known[name] = container
        container.init.on_exit = lambda: self._exited(container)
        container.init.on_cancel = lambda: self._delete(container)
        over = container.at_work()
        wanted = limits.taken(config["process"])
        container.oom_score = config["process"].get("oomScoreAdj", oom.AS_OTHERS)
        linkless = propagation.without_links(config)
        container.binds = covering.binds_of(config)

        def check(pid: int) -> str:
            return (
                executable.refusal(pid, config["process"])
                or limits.give(pid, wanted)
                or propagation.forbid_links(pid, linkless)
                or self._covers.give(pid, container.binds)
            )

        def created(reason: str) -> None:
            if not reason:
                self._oom_kills.follow(container.cgroup, container.init.tell_oom_kills)
                self._become(container, CREATING, CREATED)
            over()

        def undo(then: Callable[[], None]) -> None:
            if container.init.pid:
                self._delete(container, lambda _: then())
                return
            # A crun that fails late leaves the control group behind.
            with contextlib.suppress(OSError):
                cgroups.remove(container.cgroup)
            self._forget(container)
            then()

        words = ["create", "--bundle", container.directory]
        try:
            self._memory.give(name, config)
            self._propagation.give(name, config)
            disk.give_modules(config)
            disk.give_devices(config, container.directory)
            files.write(f"{container.directory}/config.json", json.dumps(config))
            terminal = bool(request.get("terminal"))
            container.init.launch(
                *(words, name, terminal, created),
                check=check,
                undo=undo,
                null_stdin=bool(request.get("null_stdin")),
            )
        except BaseException:
            self._forget(container)
            raise
        return container.init

    def execute(self, request: Request, answer: Answer) -> Process:
        """Run another process, an OCI `process` object, in a container. Its score for the kernel's
        OOM killer is the container's, as by runc."""
        container = self._named(request)
        container.must_be(CREATED, RUNNING)
        if reason := executable.refusal(container.init.pid, request["process"]):
            raise RefusedError(reason, FAILED)
        process = self._process(answer, request["process"])
        process.lingers = True
        process.on_exit = lambda: self._lingers(process)
        words, sheet = ["exec", "--detach", "--process={}"], request["process"]
        over = container.at_work()
        score = container.oom_score
        lowered = limits.too_low(sheet)

        def check(pid: int) -> str:
            # crun may have made the process before it had the score itself.
            oom.may_be_killed(pid, score)
            limits.lower(pid, lowered)
            return ""

        terminal = bool(request.get("terminal"))
        try:
            process.launch(
                *(words, container.id, terminal, lambda _: over(), sheet, check),
                oom_score=score,
                null_stdin=bool(request.get("null_stdin")),
            )
        except BaseException:
            over()
            raise
        return process

    def start(self, request: Request, answer: Answer) -> None:
        """Run the program of a created container. The request is answered when the program runs."""
        container = self._named(request)
        container.must_be(CREATED)
        network.await_running()

        def started() -> None:
            self._become(container, CREATED, RUNNING)
            container.init.when_executed(lambda: answer.finish({}))

        try:
            crun.start(container.id)
        except OSError:
            # crun starts it, or knows the reason of the failure.
            self._run_crun(container, ["start"], answer, started)
        else:
            started()

    def pause(self, request: Request, answer: Answer) -> None:
        """Freeze all processes of a container."""
        self._switch(request, answer, "pause", RUNNING, PAUSED)

    def resume(self, request: Request, answer: Answer) -> None:
        self._switch(request, answer, "resume", PAUSED, RUNNING)

    def update(self, request: Request, answer: Answer) -> None:
        """Change the limits of a container: `resources`, the OCI object of that name."""
        container = self._named(request)
        container.must_be(CREATED, RUNNING, PAUSED)
        words, sheet = ["update", "--resources={}"], request["resources"]
        self._run_crun(container, words, answer, lambda: answer.finish({}), sheet)

    def signal(self, request: Request, answer: Answer) -> None:
        """Send a signal to the first process of a container, or to all its processes."""
        container, number = self._named(request), int(request["signal"])
        if number not in signal.valid_signals():
            raise RefusedError(f"there is no signal {number}", FAILED)
        if container.status == CREATED and number in _ENDS_UNSTARTED:
            # That of crun has no handler, and the kernel passes over it.
            container.must_be(CREATED)
            container.init.kill_as(_STATUS_UNSTARTED)
        elif request.get("all"):
            cgroups.signal_all(container.cgroup, number)
        else:
            container.must_be(CREATED, RUNNING, PAUSED)
            container.init.signal(number)
        answer.finish({})

    def processes(self, request: Request, answer: Answer) -> None:
        container = self._named(request)
        answer.finish({"processes": cgroups.processes(container.cgroup)})

    def statistics(self, request: Request, answer: Answer) -> None:
        numbers = cgroups.statistics(self._named(request).cgroup)
        # All containers share the guest's network.
        answer.finish(numbers | counters.of_network())

    def delete(self, request: Request, answer: Answer) -> None:
        """Remove a container; with `force`, also one that runs. A container that does not exist
        counts as removed."""
        container = self._known.get(str(request["id"]))
        if container is None:
            answer.finish({})
            return
        if not request.get("force") and container.deletions is None:
            container.must_be(CREATED, STOPPED)

        def deleted(reason: str) -> None:
            if reason:
                answer.fail(error_reply(RefusedError(reason, FAILED)))
            else:
                answer.finish({})

        self._delete(container, deleted)

    def cover(self, request: Request, answer: Answer) -> None:
        """Show counterparts of the host's sockets, numbers by their paths in the share, and hide
        others, in all containers. A process of its own does that, because the agent must not wait
        for files of the host."""
        shown, hidden = request["shown"], request["hidden"]
        self._covers.change(shown, hidden)
        running = [
            (each.init.pid, each.binds)
            for each in self._known.values()
            if each.init.pid and not each.init.has_exited
        ]

        def cover() -> None:
            for pid, binds in running:
                covering.apply(pid, binds, shown, hidden)

        in_a_child(self._children, cover, answer)

    def discard_all(self) -> None:
        """Delete all containers, because their creators have gone."""
        self._covers.clear()
        for container in list(self._known.values()):
            self._delete(container)

    def _delete(self, container: Container, then: Done | None = None) -> None:
        """Delete a container, unless its deletion has begun. Call `then` with "", or with the
        reason of the failure."""
        if self._known.get(container.id) is not container:
            if then:
                then("")
            return
        is_begun = container.deletions is not None
        container.deletions = (container.deletions or []) + ([then] if then else [])
        if is_begun:
            return
        # Without this, crun's work on the container might never end.
        container.init.signal(signal.SIGKILL)

        def deleted(reason: str) -> None:
            waiting, container.deletions = container.deletions or [], None
            if not reason:
                self._forget(container)
            for each in waiting:
                each(reason)

        def delete() -> None:
            if self._known.get(container.id) is not container:
                deleted("")
                return
            try:
                self._crun.run(["delete", "--force", container.id], deleted)
            except OSError as error:
                deleted(str(error))

        container.when_idle(delete)

    def _switch(self, request: Request, answer: Answer, verb: str, before: str, after: str) -> None:
        container = self._named(request)
        container.must_be(before)

        def switched() -> None:
            self._become(container, before, after)
            answer.finish({})

        self._run_crun(container, [verb], answer, switched)

    def _exited(self, container: Container) -> None:
        """Report the end of the first process, after reporting the kernel's kill that may have
        caused it."""
        self._oom_kills.look(container.cgroup)
        container.stopped()

    def _lingers(self, process: ContainerProcess) -> None:
        """Note a process that has ended, and let go of the oldest ones where they are too many."""
        self._lingering = [each for each in self._lingering if not each.is_over] + [process]
        excess = max(0, len(self._lingering) - protocol.MAX_LINGERING)
        for oldest in self._lingering[:excess]:
            oldest.let_go()

    def _become(self, container: Container, before: str, after: str) -> None:
        """Note the state after crun's work, unless the container has ended meanwhile."""
        if container.status == before:
            container.status = after

    def _run_crun(
        self,
        container: Container,
        words: list[str],
        answer: Answer,
        succeeded: Callable[[], None],
        sheet: dict[str, Any] | None = None,
    ) -> None:
        """Run crun on a container. A failure is answered here."""
        over = container.at_work()

        def done(reason: str) -> None:
            if reason:
                answer.fail(error_reply(RefusedError(reason, FAILED)))
            else:
                succeeded()
            over()

        try:
            self._crun.run([*words, container.id], done, sheet)
        except BaseException:
            over()
            raise

    def _process(self, answer: Answer, process: dict[str, Any]) -> ContainerProcess:
        program = str(process["args"][0])
        return ContainerProcess(self._watch, self._children, self._crun, answer, program)

    def _forget(self, container: Container) -> None:
        if self._known.get(container.id) is container:
            del self._known[container.id]
            self._oom_kills.forget(container.cgroup)
            self._propagation.release(container.id)
            self._memory.release(container.id)
        files.remove(container.directory)

    def _named(self, request: Request) -> Container:
        container = self._known.get(str(request["id"]))
        if container is None:
            raise RefusedError(f"there is no container called {request['id']!r}", NOT_FOUND)
        return container
