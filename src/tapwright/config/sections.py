"""The sections of a configuration, their keys and defaults, and the conflicts between keys.

Sections and keys are those of Kata Containers 1.x where it has them, with their meaning
(pkg/katautils/config.go in kata-containers/runtime); the rate limits are from its version 2.

The classes are named tuples, because each start of a sandbox defines them: a frozen dataclass takes
eight times as long.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

LEAST_MEMORY = 128
"""MiB; with 112 the guest's kernel ends in the middle of booting."""
MOST_BRIDGES = 5
_NICS_PER_BRIDGE = 30

MODEL = "tcfilter"
KATAS_MODELS = ("bridged", "enlightened", "l3forwarding")
"""Of Kata 1.x and of its runtime in Rust: whichever is chosen, interfaces are joined by `MODEL`."""
MODELS = (MODEL, "macvtap", "none")
RULESETS = ("required", "best-effort", "none")
SHARED_FS = "virtio-fs"
SHARED_FILESYSTEMS = (SHARED_FS, "virtio-9p", "virtio-fs-nydus", "inline-virtio-fs", "none")
"""Kata's; whichever is chosen, files are shared by the first."""
CACHES = ("auto", "always", "metadata", "never", "none")

_INT32 = 2**31 - 1
_MOST_MEMORY = 16 * 1024 * 1024
_MOST_CPU, _MOST_PIDS = 100 * 8192, 4_194_304
_MOST_SPARES = 64
_LEAST_RATE, _MOST_RATE = 8_000, 10**12


class Rule(NamedTuple):
    """The valid values of a key: numbers from `least` to `most`, or one of `choices`, or one of
    `also`, which files for Kata have. With `blank`, an empty value or 0 means the default, as in
    Kata; with `or_none`, an empty value means none at all."""

    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    blank: bool = False
    or_none: bool = False


class Qemu(NamedTuple):
    """[hypervisor.qemu]: the virtual machine. Empty `kernel` and `initrd` mean the image we build.

    `default_vcpus` and `default_bridges` are what is made of the file's values: at most the host's
    CPUs, at most 5 bridges; `default_maxvcpus` too, with 0 for all CPUs. `default_memory` in MiB,
    `default_maxmemory` too, with 0 for all memory; `boot_timeout` in seconds, the rates in bits a
    second with 0 for no limit; `file_mem_backend` is a directory for memory that other processes
    can share. An empty `virtio_fs_daemon` is the first virtiofsd that is installed.
    `enable_annotations` are regular expressions for the keys that a pod's annotations may change.
    """

    path: str = "qemu-system-x86_64"
    kernel: str = ""
    initrd: str = ""
    kernel_params: str = ""
    machine_type: str = "q35"
    accelerator: str = "auto"
    default_vcpus: int = 1
    default_memory: int = 256
    default_maxvcpus: int = 0
    default_maxmemory: int = 0
    memory_slots: int = 16
    default_bridges: int = 1
    pcie_root_port: int = 8
    boot_timeout: int = 60
    file_mem_backend: str = ""
    enable_hugepages: bool = False
    disable_vhost_net: bool = False
    shared_fs: str = SHARED_FS
    virtio_fs_daemon: str = ""
    virtio_fs_cache: str = "auto"
    virtio_fs_extra_args: tuple[str, ...] = ()
    rx_rate_limiter_max_rate: int = 0
    tx_rate_limiter_max_rate: int = 0
    enable_debug: bool = False
    enable_annotations: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """The number of NICs for which the machine has room, 1 to 150."""
        if self.pcie_root_port and self.machine_type != "pc":
            return self.pcie_root_port
        return _NICS_PER_BRIDGE * self.default_bridges


class Netmon(NamedTuple):
    """[netmon]: the process that watches a sandbox's netns. An empty `path` means Tapwright's
    own."""

    enable_netmon: bool = False
    path: str = ""
    enable_debug: bool = False


class Runtime(NamedTuple):
    """[runtime]: how interfaces are joined with NICs, whether the sandbox has a netns, whether the
    guest must have the packet rules of the netns, whether containers have no seccomp filters in the
    guest, and whether list-ifaces prints the short form (`enable_compat_old_cni`, a key of
    openEuler).

    At most `max_concurrent_starts` sandboxes of the host start at once: 0 for any number, less for
    twice the number of CPUs.

    `sandbox_cgroup` is the control group below which sandboxes get groups of their own, empty for
    none. Each group may use `cpu_max` hundredths of a CPU, `memory_max` MiB and `pids_max` tasks
    (0: no limit). The virtual machine of a platform's container or pod may use the container's
    limits and an overhead, in the same units.
    """

    internetworking_model: str = MODEL
    disable_new_netns: bool = False
    netns_rulesets: str = "required"
    max_concurrent_starts: int = -1
    sandbox_cgroup: str = "/tapwright"
    cpu_max: int = 0
    memory_max: int = 0
    pids_max: int = 0
    overhead_cpu: int = 25
    overhead_memory: int = 384
    overhead_pids: int = 256
    disable_guest_seccomp: bool = False
    enable_compat_old_cni: bool = True
    enable_debug: bool = False


class Factory(NamedTuple):
    """[factory]: whether sandboxes start from a template, the directory of the templates, and the
    MiB of disk for all of them (0: no limit); the number of spares of each kind, and the seconds
    for which each of them waits."""

    enable_template: bool = True
    template_path: str = "/var/lib/tapwright/template"
    template_limit: int = 2048
    vm_cache_number: int = 1
    spare_seconds: int = 600


class Cni(NamedTuple):
    """[cni]: the directories of networks, of plugins, and of remembered attachments."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
    cache_dir: str = "/var/lib/cni"


class Image(NamedTuple):
    """[image]: the directory of guest images."""

    store: str = "/var/lib/tapwright/images"


SECTIONS: dict[str, tuple[str, type[Any]]] = {
    "hypervisor.qemu": ("qemu", Qemu),
    "netmon": ("netmon", Netmon),
    "runtime": ("runtime", Runtime),
    "factory": ("factory", Factory),
    "cni": ("cni", Cni),
    "image": ("image", Image),
}
"""The section's name in the file: the attribute of Config, and its class."""

RULES: dict[str, dict[str, Rule]] = {
    "hypervisor.qemu": {
        "path": Rule(blank=True),
        "machine_type": Rule(choices=("q35", "pc"), blank=True),
        "accelerator": Rule(choices=("auto", "kvm", "tcg")),
        "default_vcpus": Rule(least=-_INT32 - 1, most=_INT32, blank=True),
        "default_memory": Rule(least=LEAST_MEMORY, most=_MOST_MEMORY, blank=True),
        "default_maxvcpus": Rule(most=_INT32),
        "default_maxmemory": Rule(most=_MOST_MEMORY),
        "memory_slots": Rule(least=1, most=256, blank=True),
        "default_bridges": Rule(least=1, most=_INT32, blank=True),
        "pcie_root_port": Rule(most=MOST_BRIDGES * _NICS_PER_BRIDGE),
        "boot_timeout": Rule(least=1, most=3600),
        "shared_fs": Rule(choices=SHARED_FILESYSTEMS, blank=True),
        "virtio_fs_cache": Rule(choices=CACHES, blank=True),
        "rx_rate_limiter_max_rate": Rule(least=_LEAST_RATE, most=_MOST_RATE, blank=True),
        "tx_rate_limiter_max_rate": Rule(least=_LEAST_RATE, most=_MOST_RATE, blank=True),
    },
    "runtime": {
        "internetworking_model": Rule(choices=MODELS, also=("default", *KATAS_MODELS), blank=True),
        "netns_rulesets": Rule(choices=RULESETS, blank=True),
        "max_concurrent_starts": Rule(least=-_INT32 - 1, most=_INT32),
        "sandbox_cgroup": Rule(or_none=True),
        "cpu_max": Rule(most=_MOST_CPU),
        "memory_max": Rule(most=_MOST_MEMORY),
        "pids_max": Rule(most=_MOST_PIDS),
        "overhead_cpu": Rule(most=_MOST_CPU),
        "overhead_memory": Rule(most=_MOST_MEMORY),
        "overhead_pids": Rule(most=_MOST_PIDS),
    },
    "factory": {
        "template_path": Rule(blank=True),
        "template_limit": Rule(most=_MOST_MEMORY),
        "vm_cache_number": Rule(most=_MOST_SPARES),
        "spare_seconds": Rule(least=1, most=_INT32),
    },
}
"""The rules of the keys that have one, by section."""


class Setting(NamedTuple):
    """A key, its value, the value's source (a file, or `default`), and its state: `in use` or
    `passed over`."""

    section: str
    key: str
    value: Any
    source: str
    state: str


class Config(NamedTuple):
    """A whole configuration. `source` is the file, empty for the defaults.

    Keys are written "[section] key". `given` maps Tapwright's keys to the file that sets them,
    which may be a drop-in; `unused` has the keys that only Kata uses. `warnings` are whole
    sentences, without the file.
    """

    qemu: Qemu = Qemu()
    netmon: Netmon = Netmon()
    runtime: Runtime = Runtime()
    factory: Factory = Factory()
    cni: Cni = Cni()
    image: Image = Image()
    source: str = ""
    given: Mapping[str, str] = MappingProxyType({})
    unused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def settings(self) -> Iterator[Setting]:
        """All keys with their effective values, in the order of the default file."""
        for section, (attribute, kind) in SECTIONS.items():
            for key in kind._fields:
                name = f"[{section}] {key}"
                yield Setting(
                    section,
                    key,
                    getattr(getattr(self, attribute), key),
                    self.given.get(name, "default"),
                    "passed over" if name in self.unused else "in use",
                )


def conflicts(config: Config) -> list[str]:
    """The conflicts between keys, in Kata's words."""
    if not config.runtime.disable_new_netns:
        return []
    found = []
    if config.netmon.enable_netmon:
        found.append("config disable_new_netns conflicts with enable_netmon")
    if config.runtime.internetworking_model != "none":
        found.append("config disable_new_netns only works with 'none' internetworking_model")
    return found
