"""Checks whether the programs and files that sandboxes need are installed, and within reach of
QEMU's user, which is not root. Changes nothing."""

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tapwright import cni
from tapwright.cni.pluginpath import DEFAULT_PATH
from tapwright.config import Config
from tapwright.errors import HypervisorError
from tapwright.hypervisor import process, users, virtiofsd
from tapwright.hypervisor.machine import check_hugepages
from tapwright.hypervisor.template_store import Store
from tapwright.image import store
from tapwright.linux import access
from tapwright.linux.distribution import Distribution
from tapwright.sandbox.finding import OK, PROBLEM, WARNING, Finding

_SECONDS = 10.0


def _has(find: Callable[[int], object]) -> Callable[[int], bool]:
    """Return a function that says whether an account has a number."""

    def known(number: int) -> bool:
        try:
            find(number)
        except KeyError:
            return False
        return True

    return known


_ROMS = (("bios-256k.bin", "firmware"), ("pvh.bin", "qemu"))
"""Files that QEMU loads before a guest's kernel, and the programs whose packages contain them."""

_SERVICES = {"a user's": _has(pwd.getpwuid), "a group's": _has(grp.getgrgid)}
"""Whether an account has a number, by the host's databases (nsswitch.conf(5))."""


def qemu(config: Config, system: Distribution) -> Finding:
    """Whether QEMU runs as its user, with the libraries that it needs."""
    wanted = config.qemu.path
    advice = "set path in [hypervisor.qemu], or " + system.installing("qemu", "QEMU")
    path = shutil.which(wanted)
    if path is None:
        return Finding("QEMU", PROBLEM, f"{wanted} is not installed", advice)
    try:
        done = _run(path, "--version")
    except (HypervisorError, OSError, subprocess.SubprocessError) as error:
        if closed := _closed_to_qemu(Path(path), os.X_OK):
            found = f"{path} can't be run by QEMU's user, which is not root: {closed} is closed"
            return Finding("QEMU", PROBLEM, found, f"run: {_opened(closed, 'a+rx')}")
        return Finding("QEMU", PROBLEM, f"{path} does not run: {error}", advice)
    first = done.stdout.partition("\n")[0]
    if done.returncode or "QEMU" not in first:
        said = (done.stderr.strip().splitlines() or ["it is no QEMU"])[-1]
        return Finding("QEMU", PROBLEM, f"{path} does not run: {said}", advice)
    return Finding("QEMU", OK, f"{path}: {first}")


def guest(config: Config, system: Distribution) -> Finding:
    """Whether the guest's files exist, and QEMU's user can read them."""
    for file in filter(None, (config.qemu.kernel, config.qemu.initrd)):
        if not os.path.exists(file):
            advice = "name another in [hypervisor.qemu], or none: Tapwright builds its own"
            return Finding("guest image", PROBLEM, f"{file} is missing", advice)
    files = guest_files(config)
    if files is None:
        return _not_built(system)
    for path in files:
        # Only the file counts: QEMU's jail shows it without the directories above it.
        if os.geteuid() == 0 and not access.may_read(path, *process.user()):
            found = f"{path} can't be read by QEMU's user, which is not root: it is closed"
            advice = f"run: {_opened(path)}"
            return Finding("guest image", PROBLEM, found, advice)
    return Finding("guest image", OK, " and ".join(map(str, files)))


def _not_built(system: Distribution) -> Finding:
    name = "guest image"
    if lacking := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        found = f"not built yet, and without {' and '.join(lacking)} it can't be built here"
        advice = "export one on a Debian or Ubuntu machine, and run: tapwright image import FILE"
        return Finding(name, WARNING, found, advice)
    if shutil.which("zstd") is None:  # how kernels are packed since Debian 13 and Ubuntu 24.04
        found = "not built yet, and without zstd it may be that it can't be"
        advice = f"{system.installing('zstd', 'zstd')} && tapwright image build"
        return Finding(name, WARNING, found, advice)
    found = "not built yet; the first sandbox builds it"
    return Finding(name, WARNING, found, "run: tapwright image build")


def guest_files(config: Config) -> tuple[Path, Path] | None:
    """Kernel and initrd; None when Tapwright's own image is wanted, and not built yet."""
    kernel, initrd = config.qemu.kernel, config.qemu.initrd
    if kernel and initrd:
        return Path(kernel), Path(initrd)
    image = store.find(Path(config.image.store))
    if image is None:
        return None
    return Path(kernel) if kernel else image.kernel, Path(initrd) if initrd else image.initrd


def firmware(config: Config, system: Distribution) -> Iterator[Finding]:
    """Check the files that QEMU loads before the guest, in the directories that QEMU names; yield
    nothing if it names none."""
    path = shutil.which(config.qemu.path)
    try:
        listed = _run(path, "-L", "help").stdout if path else ""
    except (HypervisorError, OSError, subprocess.SubprocessError):
        return
    directories = [Path(line) for line in listed.splitlines() if line.startswith("/")]
    if not directories:
        return
    found = []
    for name, package in _ROMS:
        files = [directory / name for directory in directories if (directory / name).exists()]
        if not files:
            where = ", ".join(map(os.path.normpath, directories))
            advice = system.installing(package, name)
            yield Finding("firmware", PROBLEM, f"{name} is in none of {where}", advice)
            return
        if closed := _closed_to_qemu(files[0].resolve()):
            what = f"{os.path.normpath(files[0])} can't be read by QEMU's user: {closed} is closed"
            yield Finding("firmware", PROBLEM, what, f"run: {_opened(closed)}")
            return
        found.append(os.path.normpath(files[0]))
    yield Finding("firmware", OK, ", ".join(found))


def users_of_qemu() -> Finding:
    """Whether no account has the numbers of QEMU's users."""
    name, first, last = "user ids", users.first(), users.last()
    range_ = f"{first} to {last}"
    others = [kind for kind, known in _SERVICES.items() if known(process.user()[0])]
    if others:
        found = f"{process.user()[0]}, of the range of QEMU's users, is {' and '.join(others)}"
        advice = "move the accounts: a QEMU that is taken over acts with their rights"
        return Finding(name, WARNING, found, advice)
    if owners := users.owners():
        return Finding(name, OK, f"{range_}, for others are in {' and '.join(owners)}")
    return Finding(name, OK, range_)


def memory(config: Config) -> Iterator[Finding]:
    """Whether the directory or the huge pages for the guest's memory exist, if the configuration
    names them."""
    directory = config.qemu.file_mem_backend
    if directory and not os.path.isdir(directory):
        advice = "make it, or name another in [hypervisor.qemu]"
        yield Finding("memory", PROBLEM, f"file_mem_backend {directory} is no directory", advice)
    if config.qemu.enable_hugepages:
        try:
            check_hugepages(config.qemu.default_memory)
        except HypervisorError as error:
            yield Finding("huge pages", PROBLEM, str(error))
        else:
            yield Finding("huge pages", OK, "enough are free")


def template(config: Config) -> Finding:
    """Whether sandboxes will start from templates."""
    name, directory = "templates", Path(config.factory.template_path)
    if not config.factory.enable_template:
        return Finding(name, OK, "not wanted: enable_template is false, so each guest is booted")
    if os.geteuid() != 0:
        return Finding(name, WARNING, "unknown: only root can try", "run it with sudo")
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    advice = "set another template_path in [factory], or enable_template = false"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        found = f"none can be made: {there} can't be written to; guests are booted"
        return Finding(name, WARNING, found, advice)
    if theirs := access.foothold(directory):
        found = f"none is used: others than root can change {theirs}; guests are booted"
        return Finding(name, WARNING, found, f"run: chown root {theirs} && chmod go-w {theirs}")
    if reason := Store(directory).last_failure():
        found = f"one could not be made, and is tried again ten minutes later: {reason}"
        return Finding(name, WARNING, found, advice)
    if there == directory and any(directory.glob("template-*")):
        return Finding(name, OK, f"in {directory}")
    try:
        Store(there).check_room(config.qemu.default_memory)
    except (HypervisorError, OSError) as error:
        return Finding(name, WARNING, f"none can be made, so guests are booted: {error}", advice)
    return Finding(name, OK, f"the first sandbox makes one in {directory}")


def share(config: Config, system: Distribution) -> Finding:
    """The program that opens files of the host for containers of platforms."""
    name, configured = "file share", config.qemu.virtio_fs_daemon
    path = virtiofsd.find(configured)
    advice = system.installing("virtiofsd", "virtiofsd")
    if path is None:
        found = "no virtiofsd: sandboxes start, containers of platforms can't"
        return Finding(name, WARNING, found, advice)
    try:
        kind = "QEMU's own, in C" if virtiofsd.is_in_c(path) else "the one in Rust"
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, WARNING, f"{path} does not run: {error}", advice)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return Finding(name, WARNING, f"{path} does not run: {said}", advice)
    what = f"virtio-fs by {path} ({kind}: {done.stdout.partition(chr(10))[0].strip()})"
    if configured and path != configured:
        advice = "change virtio_fs_daemon in [hypervisor.qemu], or leave it out"
        return Finding(name, WARNING, f"{configured} is not there, so {what}", advice)
    return Finding(name, OK, what)


def firewall(system: Distribution) -> Finding:
    found = [name for name in ("nft", "iptables") if shutil.which(name)]
    if found:
        return Finding("firewall", OK, ", ".join(found))
    advice = "for plugins that masquerade or publish ports, " + system.installing(
        "nftables", "nftables or iptables"
    )
    return Finding("firewall", WARNING, "neither nft nor iptables", advice)


def plugins(config: Config, system: Distribution) -> list[Finding]:
    found = {directory: _executables(directory) for directory in config.cni.bin_dirs}
    if any(found.values()):
        return [
            Finding("plugins", OK, f"{directory}: {', '.join(names) or 'none'}")
            for directory, names in found.items()
        ]
    where = ", ".join(found) or "no directory"
    elsewhere = [directory for directory in DEFAULT_PATH if _executables(directory)]
    if elsewhere:
        advice = f'set bin_dirs = ["{elsewhere[0]}"] in [cni], where plugins are'
    else:
        advice = "set bin_dirs in [cni], or " + system.installing("plugins", "CNI plugins")
    return [Finding("plugins", WARNING, f"none in {where}", advice)]


def _executables(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [name for name in names if cni.find_plugin(name, [directory])]


def _run(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as QEMU runs, where this process may."""
    if os.geteuid() == 0:
        return process.output_of(os.path.abspath(path), *arguments, seconds=_SECONDS)
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=_SECONDS, cwd="/"
    )


def _closed_to_qemu(path: Path, wanted: int = os.R_OK) -> Path | None:
    """Return the file or directory that keeps QEMU's user from a file; None also if only root could
    find out."""
    if os.geteuid() != 0:
        return None
    return access.obstacle(path, *process.user(), wanted)


def _opened(closed: Path, of_file: str = "a+r") -> str:
    """The command that opens a file to all users."""
    return f"chmod {'a+x' if closed.is_dir() else of_file} {closed}"
