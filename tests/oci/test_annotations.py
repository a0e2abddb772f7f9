"""What a pod's annotations ask of its sandbox: Kata's, and openEuler's."""

import os
from typing import Any

import pytest

from tapwright.config import Config
from tapwright.errors import BundleError
from tapwright.oci import annotations
from tapwright.oci.log import Log
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime

KATA = "io.katacontainers.config."
OPENEULER = "com.github.containers.virtcontainers."
CPUS = len(os.sched_getaffinity(0))


def configured(marks: dict[str, Any], *enabled: str, **runtime: Any) -> Config:
    default = Config()
    config = default._replace(
        qemu=default.qemu._replace(enable_annotations=enabled, kernel_params="quiet"),
        runtime=default.runtime._replace(**runtime),
    )
    return annotations.configured(config, marks, Log("", "text"))


@pytest.mark.parametrize("prefix", [OPENEULER, "io.katacontainers."])
@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("2147483648", 2048),
        ("512m", 512),
        ("1.5g", 1536),
        ("1GiB", 1024),
        ("300 MB", 300),
        ("134217728", 128),
    ],
)
def test_memory_of_the_sandbox(prefix: str, text: str, mib: int) -> None:
    assert configured({f"{prefix}sandbox_mem": text}).qemu.default_memory == mib


def test_cpus_of_the_sandbox() -> None:
    for text, count in (("1", 1), ("0.25", 1), (str(CPUS), CPUS), (f"{CPUS - 1}.5", CPUS)):
        assert configured({f"{OPENEULER}sandbox_cpu": text}).qemu.default_vcpus == count


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ({f"{OPENEULER}sandbox_mem": ""}, "bytes, or a number with a unit"),
        ({f"{OPENEULER}sandbox_mem": "1x"}, "bytes, or a number with a unit"),
        ({f"{OPENEULER}sandbox_mem": "64m"}, "must be a whole number from 128"),
        ({f"{OPENEULER}sandbox_mem": "9999t"}, "must be a whole number from 128"),
        ({f"{OPENEULER}sandbox_mem": 7}, "7 is refused: it must be a string"),
        ({f"{OPENEULER}sandbox_cpu": "0.2"}, f"from 0.25 to {CPUS}"),
        ({f"{OPENEULER}sandbox_cpu": str(CPUS + 1)}, f"from 0.25 to {CPUS}"),
        ({f"{OPENEULER}sandbox_cpu": "1e0"}, f"from 0.25 to {CPUS}"),
        ({f"{KATA}hypervisor.default_memory": "512"}, "is not enabled"),
        ({f"{KATA}hypervisor.path": "/bin/sh"}, "is not enabled"),
        ({f"{KATA}runtime.internetworking_model": "bridge"}, "internetworking_model = "),
        ({f"{KATA}runtime.disable_guest_seccomp": "no"}, "true or false"),
        ({f"{KATA}runtime.internetworking_model": "macvtap"}, "only works with 'none'"),
    ],
)
def test_what_is_refused(marks: dict[str, Any], reason: str) -> None:
    # The last one's value is right, but not with this.
    apart = {"disable_new_netns": True, "internetworking_model": "none"}
    with pytest.raises(BundleError) as refused:
        configured(marks, **(apart if "only works" in reason else {}))
    assert reason in str(refused.value)
    assert next(iter(marks)) in str(refused.value) or "annotations: " in str(refused.value)


def test_keys_of_the_hypervisor_that_are_enabled() -> None:
    marks = {
        f"{KATA}hypervisor.default_memory": "512",
        f"{KATA}hypervisor.default_vcpus": "0.5",
        f"{KATA}hypervisor.kernel_params": "a=1 b",
        f"{KATA}hypervisor.machine_type": "pc",
        f"{KATA}hypervisor.disable_vhost_net": "true",
        f"{KATA}hypervisor.virtio_fs_extra_args": '["--x", "y"]',
        f"{KATA}runtime.internetworking_model": "macvtap",
        f"{KATA}runtime.disable_guest_seccomp": "False",
        "io.katacontainers.pkg.oci.container_type": "pod_sandbox",
    }
    found = configured(
        marks, "memory", "^default_vcpus$", "kernel_params", "machine", "disable", "virtio_fs.*"
    )
    qemu = found.qemu
    assert (qemu.default_memory, qemu.default_vcpus) == (512, 1)
    assert (qemu.kernel_params, qemu.machine_type) == ("quiet a=1 b", "pc")
    assert (qemu.disable_vhost_net, qemu.virtio_fs_extra_args) == (True, ("--x", "y"))
    assert found.runtime.internetworking_model == "macvtap"
    assert found.runtime.disable_guest_seccomp is False


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("default_memory", "64", "default_memory = 64: must be a whole number"),
        ("default_memory", "-1", "a whole number"),
        ("default_vcpus", str(CPUS + 1), f"from 0.25 to {CPUS}"),
        ("machine_type", "virt", "machine_type = 'virt': must be"),
        ("virtio_fs_extra_args", "--x", "a list in JSON"),
        ("virtio_fs_extra_args", "[1]", "a list of strings"),
        ("disable_vhost_net", "2", "true or false"),
    ],
)
def test_what_is_enabled_and_refused(key: str, text: str, reason: str) -> None:
    with pytest.raises(BundleError) as refused:
        configured({f"{KATA}hypervisor.{key}": text}, key)
    assert reason in str(refused.value)
    assert f"{KATA}hypervisor.{key}" in str(refused.value)


def test_what_is_enabled_and_of_no_use(capfd: pytest.CaptureFixture[str]) -> None:
    """A program of the host is not what an annotation may choose."""
    config, log = Config(), Log("", "text")
    config = config._replace(qemu=config.qemu._replace(enable_annotations=("(", ".*")))
    marks = {f"{KATA}hypervisor.path": "/bin/sh"}
    assert annotations.configured(config, marks, log) is config
    log.succeeded()
    assert "path is passed over" in capfd.readouterr().err


def test_the_platforms_network_stays(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("", "text")
    marks = {f"{KATA}runtime.disable_new_netns": "true"}
    assert annotations.configured(Config(), marks, log) == Config()
    log.succeeded()
    assert "disable_new_netns is passed over" in capfd.readouterr().err


def test_no_annotation_changes_nothing() -> None:
    config = Config()
    marks = {"io.kubernetes.cri.container-type": "sandbox"}
    assert annotations.configured(config, marks, Log("", "text")) is config


def test_name_servers() -> None:
    text = (
        '{"Servers":["10.0.0.2","fd00::2"],"Domain":"a.test",'
        '"searches":["a.test","b"],"Options":["ndots:5"]}'
    )
    assert annotations.dns({f"{OPENEULER}sandbox_dns": text}) == {
        "nameservers": ["10.0.0.2", "fd00::2"],
        "domain": "a.test",
        "search": ["a.test", "b"],
        "options": ["ndots:5"],
    }
    assert annotations.dns({"io.katacontainers.sandbox_dns": '{"Servers":null}'}) == {
        "nameservers": [],
        "domain": "",
        "search": [],
        "options": [],
    }
    assert annotations.dns({}) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it must be JSON"),
        ("[]", "it must be an object"),
        ('{"Servers":"10.0.0.2"}', "Servers: '10.0.0.2' is refused: it must be a list"),
        ('{"Servers":["ns.test"]}', "Servers: 'ns.test' is refused: it must be an IPv4"),
        ('{"Servers":["10.0.0.2\\nnameserver 1.1.1.1"]}', "a word without spaces"),
        ('{"Domain":"a b"}', "Domain: 'a b' is refused"),
        ('{"Domain":7}', "Domain: 7 is refused"),
        ('{"Searches":["a\\nnameserver 1.1.1.1"]}', "a word without spaces"),
        ('{"Options":["x","' + "y" * 300 + '"]}', "a word without spaces"),
    ],
)
def test_what_name_servers_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BundleError) as refused:
        annotations.dns({f"{OPENEULER}sandbox_dns": text})
    assert reason in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.usefixtures("nothing_left")
def test_a_sandbox_with_annotations(runtime: Runtime) -> None:
    """All of it reaches the guest, and what its containers see there."""
    dns = '{"Servers":["192.0.2.53"],"Domain":"a.test","Searches":["b.test"],"Options":["ndots:5"]}'
    marks = {
        f"{OPENEULER}sandbox_mem": "402653184",
        f"{OPENEULER}sandbox_cpu": str(CPUS),
        f"{OPENEULER}sandbox_dns": dns,
    }
    # Booted: no other test has such guests.
    with runtime.booting(), runtime.running("sleep", "1000", annotations=marks) as container:
        memory = container.says("sh", "-c", "grep MemTotal /proc/meminfo").split()[1]
        assert 300 << 10 < int(memory) < 384 << 10
        assert container.says("nproc") == f"{CPUS}\n"
        assert container.says("cat", "/etc/resolv.conf").splitlines() == [
            "nameserver 192.0.2.53",
            "domain a.test",
            "search b.test",
            "options ndots:5",
        ]


@pytest.mark.usefixtures("nothing_left")
def test_an_annotation_that_is_not_enabled(runtime: Runtime) -> None:
    marks = {f"{KATA}hypervisor.default_vcpus": "1"}
    bundle = runtime.bundle(configuration("true", annotations=marks))
    told = runtime.refused("create", "--bundle", str(bundle), runtime.fresh_id())
    assert "is not enabled" in told
