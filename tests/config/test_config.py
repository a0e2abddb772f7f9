"""configuration.toml: what is read, and what is said of the rest."""

import os
import re
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwright import config
from tapwright.config import kata
from tapwright.config.reading import parse
from tapwright.errors import ConfigError

pytestmark = pytest.mark.unit

KATA_FILE = Path(__file__).with_name("kata-qemu.toml")
CPUS = len(os.sched_getaffinity(0))


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "configuration.toml"
    path.write_text(text)
    return config.load(str(path))


def read(text: str) -> config.Config:
    return parse([("FILE", text.encode())])


def qemu(text: str) -> config.Qemu:
    return read(f"[hypervisor.qemu]\n{text}\n").qemu


# --- places -----------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three places with nothing in them yet, and nothing named by the environment."""
    paths = [tmp_path / f"{number}.toml" for number in range(3)]
    monkeypatch.setattr(config, "PLACES", tuple(map(str, paths)))
    monkeypatch.delenv(config.ENVIRONMENT_VARIABLE, raising=False)
    return paths


def write(path: Path, memory: int) -> str:
    path.write_text(f"[hypervisor.qemu]\ndefault_memory = {memory}\n")
    return str(path)


def test_places_are_those_of_tapwright_and_of_kata() -> None:
    assert config.PLACES == (
        "/etc/tapwright/configuration.toml",
        "/etc/kata-containers/configuration.toml",
        "/usr/share/defaults/kata-containers/configuration.toml",
    )


def test_defaults_without_a_file(places: list[Path]) -> None:
    assert config.load() == config.Config()


def test_the_first_place_wins(
    places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last to the first: each takes over from all that come after it."""
    for memory, path in enumerate(reversed(places), 1000):
        write(path, memory)
        assert config.load().qemu.default_memory == memory
        assert config.load().source == str(path)
    monkeypatch.setenv(config.ENVIRONMENT_VARIABLE, write(tmp_path / "environment", 2000))
    assert config.load().qemu.default_memory == 2000
    assert config.load(write(tmp_path / "option", 3000)).qemu.default_memory == 3000


def test_an_empty_variable_names_nothing(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.ENVIRONMENT_VARIABLE, "")
    write(places[1], 512)
    assert config.load().source == str(places[1])


# --- drop-ins ---------------------------------------------------------------------------------


def test_drop_ins_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """The last value of each key counts, and `check` names the file that set it."""
    (tmp_path / "config.d").mkdir()
    for name, text in {
        "20-more.toml": "[hypervisor.qemu]\ndefault_memory = 512\n[cni]\ncache_dir = '/c'\n",
        "10-first.toml": "[hypervisor.qemu]\ndefault_memory = 384\npcie_root_port = 4\n",
        ".20-more.toml.swp": "no TOML",
    }.items():
        (tmp_path / "config.d" / name).write_text(text)
    (tmp_path / "config.d/directory").mkdir()
    loaded = load(tmp_path, "[hypervisor.qemu]\ndefault_memory = 256\nmachine_type = 'pc'\n")
    assert loaded.qemu == config.Qemu(default_memory=512, pcie_root_port=4, machine_type="pc")
    main, first, more = (
        str(tmp_path / name)
        for name in ("configuration.toml", "config.d/10-first.toml", "config.d/20-more.toml")
    )
    assert loaded.source == main
    sources = {setting.key: setting.source for setting in loaded.settings()}
    assert [sources[key] for key in ("default_memory", "pcie_root_port", "machine_type")] == [
        more,
        first,
        main,
    ]
    assert (sources["cache_dir"], sources["default_vcpus"]) == (more, "default")


def test_drop_ins_that_anybody_can_write_are_refused(tmp_path: Path) -> None:
    """As beside a file in /tmp: what they name is run as root."""
    write(tmp_path / "configuration.toml", 512)
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d").chmod(0o777)
    with pytest.raises(ConfigError, match=r"users other than root can write to .*config\.d"):
        config.load(str(tmp_path / "configuration.toml"))


def test_drop_ins_are_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real/config.d").mkdir(parents=True)
    write(tmp_path / "real/configuration.toml", 256)
    write(tmp_path / "real/config.d/1.toml", 512)
    (tmp_path / "link.toml").symlink_to("real/configuration.toml")
    assert config.load(str(tmp_path / "link.toml")).qemu.default_memory == 512


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default_memory = 512", ""),
        ("[hypervisor.qemu]\ndefault_memory = 'much'", "default_memory = 'much': must be"),
        ("[hypervisor", "is not TOML"),
    ],
)
def test_an_error_of_a_drop_in_names_it(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d/1.toml").write_text(text)
    if not said:
        assert "default_memory" in load(tmp_path, "").warnings[0]
        return
    with pytest.raises(ConfigError, match=f"config.d/1.toml.*{said}"):
        load(tmp_path, "")


# --- values -----------------------------------------------------------------------------------


def test_a_file_of_kata(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config.load(str(KATA_FILE))
    assert loaded.qemu == config.Qemu(
        path="/opt/vmm/qemu-system-x86_64",
        kernel="",
        initrd="",
        kernel_params="loglevel=4 quiet",
        machine_type="pc",
        default_vcpus=CPUS,
        default_maxvcpus=min(8, CPUS),
        memory_slots=4,
        default_memory=1024,
        default_bridges=3,
        pcie_root_port=2,
        file_mem_backend="/dev/shm",
        enable_hugepages=True,
        disable_vhost_net=True,
        virtio_fs_daemon="/opt/vmm/virtiofsd",
        virtio_fs_extra_args=("--log-level=warn",),
        rx_rate_limiter_max_rate=100_000_000,
        tx_rate_limiter_max_rate=50_000_000,
        enable_debug=True,
        enable_annotations=("default_vcpus", "default_memory"),
    )
    assert loaded.netmon == config.Netmon(
        enable_netmon=True, path="/usr/libexec/kata-containers/kata-netmon", enable_debug=True
    )
    assert loaded.runtime == config.Runtime(
        "macvtap", disable_guest_seccomp=True, enable_debug=True
    )
    assert loaded.factory == config.Factory(True, "/run/vc/vm/template", vm_cache_number=0)
    (warning,) = loaded.warnings
    assert warning.startswith("[hypervisor.qemu] kernel, initrd: that is Kata's guest")


@pytest.mark.parametrize(
    ("place", "text", "enabled"),
    [
        ("tapwright", "", True),
        ("tapwright", "[factory]\ntemplate_path = '/templates'\n", True),
        ("tapwright", "[factory]\nenable_template = false\n", False),
        ("tapwright", "[hypervisor.qemu]\nnobody_knows = 1\n", True),
        ("tapwright", "[hypervisor.qemu]\nmsize_9p = 8192\n", False),
        ("tapwright", "[agent.kata]\nenable_debug = true\n", False),
        ("tapwright", "[hypervisor.clh]\npath = '/x'\n", False),
        ("kata-containers", "", False),
        ("kata-containers", "[factory]\nenable_template = true\n", True),
    ],
)
def test_templates_unless_the_file_is_for_kata(
    tmp_path: Path, place: str, text: str, enabled: bool
) -> None:
    """Kata's default is to have none."""
    path = tmp_path / place / "configuration.toml"
    path.parent.mkdir()
    path.write_text(text)
    assert config.load(str(path)).factory.enable_template is enabled


@pytest.mark.parametrize("name", ["virtio-9p", "virtio-fs-nydus", "none"])
def test_files_come_by_virtio_fs(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text(f'[hypervisor.qemu]\nshared_fs = "{name}"\n')
    loaded = config.load(str(tmp_path / "file"))
    assert loaded.warnings == (
        f'[hypervisor.qemu] shared_fs = "{name}": files are shared by virtio-fs',
    )


@pytest.mark.parametrize(
    ("name", "warned"),
    [("default", False), ("bridged", True), ("enlightened", True), ("l3forwarding", True)],
)
def test_models_of_kata_alone(tmp_path: Path, name: str, warned: bool) -> None:
    """Each is taken for our own; a drop-in that names one of ours takes the warning back."""
    (tmp_path / "file").write_text(f'[runtime]\ninternetworking_model = "{name}"\n')
    loaded = config.load(str(tmp_path / "file"))
    assert loaded.runtime.internetworking_model == "tcfilter"
    said = f'[runtime] internetworking_model = "{name}": interfaces are joined by tcfilter'
    assert loaded.warnings == ((said,) if warned else ())
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d/model").write_text('[runtime]\ninternetworking_model = "macvtap"\n')
    loaded = config.load(str(tmp_path / "file"))
    assert (loaded.runtime.internetworking_model, loaded.warnings) == ("macvtap", ())


def test_what_only_kata_has_a_use_for_is_listed() -> None:
    """Each key of the file is either in use or passed over, and none is lost."""
    loaded = config.load(str(KATA_FILE))
    content = tomllib.loads(KATA_FILE.read_text())
    tables = content | {
        f"{family}.{kind}": table
        for family in kata.FAMILIES
        for kind, table in content.pop(family).items()
    }
    keys = {
        f"[{section}] {key}"
        for section, table in tables.items()
        if section not in kata.FAMILIES
        for key in table
    }
    used = {
        f"[{item.section}] {item.key}" for item in loaded.settings() if item.source != "default"
    }
    assert used | set(loaded.unused) == keys
    assert used & set(loaded.unused) == {"[hypervisor.qemu] kernel", "[hypervisor.qemu] initrd"}
    assert {"[proxy.kata] path", "[runtime] experimental", "[agent.kata] trace_mode"} <= set(
        loaded.unused
    )


def test_later_keys_and_other_hypervisors_of_kata_are_known() -> None:
    loaded = read(
        "[hypervisor.qemu]\nseccompsandbox = 'on'\ndisable_selinux = false\n"
        "[hypervisor.clh]\nanything = 1\n"
        "[agent.kata]\ndial_timeout = 45\n"
        "[image]\nservice_offload = false\n"
        "[runtime]\nvfio_mode = 'guest-kernel'\nsandbox_bind_mounts = []\n"
        "static_sandbox_resource_mgmt = true\ncreate_container_timeout = 60\n"
    )
    assert loaded.warnings == ()
    assert len(loaded.unused) == 9
    assert "[hypervisor.clh]" in loaded.unused


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        (
            "hypervisor.qemu",
            "block_device_logical_sector_size network_queues num_queues numa_mapping "
            "overhead_memory overhead_vcpus queue_size seccomp_sandbox sev_guest_policy "
            "vm_rootfs_driver",
        ),
        (
            "runtime",
            "agent_name disable_selinux hypervisor_name keep_abnormal log_level name use_passfd_io "
            "static_resource_mgmt",
        ),
        (
            "agent.kata",
            "cdh_api_timeout_ms container_pipe_size create_container_timeout dial_timeout_ms "
            "launch_process_timeout mem_agent reconnect_timeout_ms",
        ),
        ("image", "image_request_timeout"),
        *((f"hypervisor.{name}", "any") for name in ("cloud-hypervisor", "nemu", "openvmm")),
    ],
)
def test_keys_of_kata_s_runtime_in_rust_are_known(section: str, keys: str) -> None:
    """All that the files of Kata's releases have, up to 4.1, are no mistake of whoever has one."""
    loaded = read(f"[{section}]\n" + "".join(f"{key} = 0\n" for key in keys.split()))
    assert loaded.warnings == ()
    assert loaded.unused


def test_factory_where_kata_s_runtime_in_rust_has_it() -> None:
    loaded = read("[hypervisor.qemu.factory]\nenable_template = true\ntemplate_path = '/x'\n")
    assert (loaded.factory.enable_template, loaded.factory.template_path) == (True, "/x")
    assert loaded.warnings == ()
    with pytest.raises(ConfigError, match=r"hypervisor\.qemu\.factory must be a section"):
        read("[hypervisor.qemu]\nfactory = true\n")
    with pytest.raises(ConfigError, match=r"\[factory\] enable_template"):
        read("[hypervisor.qemu.factory]\nenable_template = 'no'\n")


def test_kata_has_none_of_our_keys_in_its_list() -> None:
    for section, kind in config.sections.SECTIONS.items():
        ours = set(kind[1]()._asdict())
        assert not ours & kata.KEYS.get(section, frozenset()), section


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        *((0, 1), (1, 1), (-1, CPUS), (-(2**31), CPUS)),
        *((CPUS, CPUS), (CPUS + 1, CPUS), (10**9, CPUS)),
        *((0.5, 1), (1.5, min(2, CPUS)), (-0.5, CPUS), (0.0, 1)),
    ],
)
def test_vcpus_as_in_kata(given: float, effective: int) -> None:
    assert qemu(f"default_vcpus = {given}").default_vcpus == effective


@pytest.mark.parametrize(("given", "effective"), [(0, 1), (1, 1), (5, 5), (6, 5), (10**6, 5)])
def test_bridges_as_in_kata(given: int, effective: int) -> None:
    assert qemu(f"default_bridges = {given}").default_bridges == effective


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("", 8),
        ("machine_type = 'pc'", 30),
        ("default_bridges = 0", 30),
        ("default_bridges = 2", 60),
        ("default_bridges = 7", 150),
        ("pcie_root_port = 0", 30),
        ("pcie_root_port = 1", 1),
        ("pcie_root_port = 150\ndefault_bridges = 2", 150),
        ("pcie_root_port = 7\nmachine_type = 'pc'", 30),
        ("pcie_root_port = 7\nmachine_type = 'pc'\ndefault_bridges = 9", 150),
    ],
)
def test_slots(text: str, slots: int) -> None:
    assert qemu(text).slots == slots


@pytest.mark.parametrize(
    ("section", "key", "blank"),
    [
        ("hypervisor.qemu", "path", '""'),
        ("hypervisor.qemu", "machine_type", '""'),
        ("hypervisor.qemu", "default_memory", "0"),
        ("runtime", "internetworking_model", '""'),
        ("factory", "template_path", '""'),
    ],
)
def test_a_blank_value_means_the_default_as_in_kata(section: str, key: str, blank: str) -> None:
    defaults = {(item.section, item.key): item.value for item in config.Config().settings()}
    loaded = read(f"[{section}]\n{key} = {blank}\n")
    values = {(item.section, item.key): item.value for item in loaded.settings()}
    assert values == defaults


def test_no_control_group() -> None:
    assert read('[runtime]\nsandbox_cgroup = ""\n').runtime.sandbox_cgroup == ""


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("/usr/share/kata-containers/vmlinuz.container", False),
        ("/opt/kata/share/kata-containers/guest/vmlinux", False),
        ("/boot/vmlinuz-kata-containers", True),
        ("/srv/kata-containers", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("key", ["kernel", "initrd"])
def test_the_guest_of_kata_is_passed_over(key: str, given: str, used: bool) -> None:
    loaded = read(f"[hypervisor.qemu]\n{key} = {given!r}\n")
    assert getattr(loaded.qemu, key) == (given if used else "")
    assert bool(loaded.warnings) is not used
    (setting,) = (item for item in loaded.settings() if item.key == key)
    assert setting.state == ("in use" if used else "passed over")


def test_an_image_is_warned_of_only_where_there_is_one() -> None:
    (warning,) = read("[hypervisor.qemu]\nimage = '/srv/guest.img'\n").warnings
    assert warning.startswith("[hypervisor.qemu] image: that is Kata's guest")
    assert read("[hypervisor.qemu]\nimage = ''\n").warnings == ()


def test_where_values_come_from() -> None:
    settings = {item.key: item for item in read("[cni]\ncache_dir = '/var/lib/cni'\n").settings()}
    assert settings["cache_dir"].source == "FILE"
    assert settings["conf_dir"].source == "default"
    assert {item.state for item in settings.values()} == {"in use"}


# --- conflicts --------------------------------------------------------------------------------

NETMON = "config disable_new_netns conflicts with enable_netmon"
MODEL = "config disable_new_netns only works with 'none' internetworking_model"


@pytest.mark.parametrize("section", ["runtime", "netmon"])
@pytest.mark.parametrize(
    ("model", "netmon", "found"),
    [
        ("none", "false", []),
        ("none", "true", [NETMON]),
        ("tcfilter", "false", [MODEL]),
        ("macvtap", "true", [NETMON, MODEL]),
    ],
)
def test_conflicts(tmp_path: Path, section: str, model: str, netmon: str, found: list[str]) -> None:
    tables = {
        "runtime": [f"internetworking_model = '{model}'"],
        "netmon": [f"enable_netmon = {netmon}"],
    }
    tables[section].append("disable_new_netns = true")
    text = "".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in tables.items())
    loaded = read(text)
    assert loaded.runtime.disable_new_netns
    assert config.conflicts(loaded) == found
    if found:
        with pytest.raises(ConfigError) as raised:
            load(tmp_path, text)
        assert str(raised.value) == f"{tmp_path}/configuration.toml: {'; '.join(found)}"


def test_no_conflict_without_disable_new_netns() -> None:
    text = "[netmon]\nenable_netmon = true\ndisable_new_netns = false\n"
    assert config.conflicts(read(text)) == []


@pytest.mark.parametrize("true_in", ["netmon", "runtime"])
def test_true_in_either_section_is_true(true_in: str) -> None:
    for first, second in (("netmon", "runtime"), ("runtime", "netmon")):
        lines = (
            f"[{name}]\ndisable_new_netns = {str(name == true_in).lower()}\n"
            for name in (first, second)
        )
        assert read("".join(lines)).runtime.disable_new_netns


# --- what is not known ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hypervisor.qemu]\nmachine_typ = 1\n", "[hypervisor.qemu] machine_typ {}machine_type?"),
        ("[hypervisor.qemu]\nuse_vsok = 1\n", "[hypervisor.qemu] use_vsok {}use_vsock?"),
        ("[netmom]\npath = 'x'\n", "[netmom] {}[netmon]?"),
        ("[hypervisor.qmu]\n", "[hypervisor.qmu] {}[hypervisor.qemu]?"),
        ("[proxy.kat]\npath = 'x'\n", "[proxy.kat] {}[proxy.kata]?"),
    ],
)
def test_near_matches(text: str, said: str) -> None:
    assert read(text).warnings == (said.format("is not known, and passed over; did you mean "),)


def test_what_is_like_nothing() -> None:
    assert read("xyz = 1\n[abc]\nd = 1\n[runtime]\nenable_netmon = true\nqqq = 1\n").warnings == (
        "outside of all sections: xyz is not known, and passed over",
        "[abc] is not known, and passed over",
        "[runtime] enable_netmon is not known, and passed over; it belongs into [netmon]",
        "[runtime] qqq is not known, and passed over",
    )


def test_a_warning_is_fit_for_a_terminal() -> None:
    (warning,) = read('[runtime]\n"\\u001b[2J\\n" = 1\n').warnings
    assert warning.isprintable()
    (warning,) = read(f"[runtime]\n{'k' * 10_000} = 1\n").warnings
    assert len(warning) < 200


# --- what is refused --------------------------------------------------------------------------

Q, R = "hypervisor.qemu", "runtime"


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        (Q, "path", "7", "a string"),
        (Q, "kernel", "['a']", "a string"),
        (Q, "kernel_params", "'a\\u0000b'".replace("'", '"'), "a string without NUL"),
        (Q, "machine_type", "'virt'", '"q35" or "pc"'),
        (Q, "machine_type", "['q35']", '"q35" or "pc"'),
        (Q, "accelerator", "''", '"auto" or "kvm" or "tcg"'),
        (Q, "default_vcpus", "true", "a whole number"),
        (Q, "default_vcpus", "inf", "a whole number"),
        (Q, "default_memory", "1024.0", "a whole number"),
        (Q, "default_vcpus", "'2'", "a whole number"),
        (Q, "default_vcpus", "2147483648", "from -2147483648 to 2147483647"),
        (Q, "default_memory", "64", r"from 128 to 16777216 \(or 0, which means 256\)"),
        (Q, "default_memory", "-1", "from 128"),
        (Q, "default_memory", "99999999999", "to 16777216"),
        (Q, "default_memory", "0x" + "f" * 10_000, "to 16777216"),
        (Q, "default_bridges", "-1", "from 1 to"),
        (Q, "pcie_root_port", "-1", "from 0 to 150"),
        (Q, "pcie_root_port", "151", "from 0 to 150"),
        (Q, "pcie_root_port", "false", "a whole number"),
        (Q, "boot_timeout", "0", "from 1 to 3600"),
        (Q, "boot_timeout", "3601", "from 1 to 3600"),
        (Q, "boot_timeout", "inf", "a whole number"),
        (Q, "rx_rate_limiter_max_rate", "-1", "from 8000 to 1000000000000"),
        (Q, "tx_rate_limiter_max_rate", "1000000000001", "from 8000 to 1000000000000"),
        (Q, "tx_rate_limiter_max_rate", "1e6", "a whole number"),
        (Q, "enable_hugepages", "1", "true or false"),
        (Q, "disable_vhost_net", "'true'", "true or false"),
        (Q, "file_mem_backend", "false", "a string"),
        ("netmon", "enable_netmon", "'yes'", "true or false"),
        ("netmon", "path", "1979-05-27", "a string"),
        ("netmon", "disable_new_netns", "0", "true or false"),
        (R, "internetworking_model", "'bridge'", '"tcfilter" or "macvtap" or "none"'),
        (R, "internetworking_model", "'TCFilter'", '"tcfilter" or "macvtap" or "none"'),
        (R, "internetworking_model", "0", '"tcfilter" or "macvtap" or "none"'),
        (R, "disable_new_netns", "[true]", "true or false"),
        ("factory", "enable_template", "2", "true or false"),
        ("factory", "template_path", "0", "a string"),
        ("cni", "conf_dir", "''", "a string that is not empty"),
        ("cni", "bin_dirs", "'/x'", "a list of strings"),
        ("cni", "bin_dirs", "['/x', 1]", "a list of strings"),
        ("cni", "bin_dirs", "['']", "a list of strings that are not empty"),
        ("image", "store", "{a = 1}", "a string"),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, key: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, f"[{section}]\n{key} = {value}\n")
    said = str(raised.value)
    assert said.startswith(f"{tmp_path}/configuration.toml: [{section}] {key} = ")
    assert re.search(f": must be .*{allowed}", said), said
    assert len(said) < 400


@given(st.integers(min_value=-(2**40), max_value=2**70))
def test_every_number_is_taken_into_its_range_or_refused(number: int) -> None:
    int32 = range(-(2**31), 2**31)
    for key, taken, least, most in (
        ("default_vcpus", number in int32, 1, CPUS),
        ("default_bridges", 0 <= number < 2**31, 1, 5),
        ("default_memory", number == 0 or 128 <= number <= 2**24, 128, 2**24),
        ("pcie_root_port", 0 <= number <= 150, 0, 150),
        ("boot_timeout", 1 <= number <= 3600, 1, 3600),
    ):
        if taken:
            assert least <= getattr(qemu(f"{key} = {number}"), key) <= most
        else:
            with pytest.raises(ConfigError, match=f"{key} = {number}: must be "):
                qemu(f"{key} = {number}")


@given(st.text(max_size=200))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    with suppress(ConfigError):
        parse([("FILE", text.encode(errors="surrogatepass"))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hypervisor = 3\n", "hypervisor must be a section of keys"),
        ("[hypervisor]\nqemu = 'x'\n", r"beginning with \[hypervisor.qemu\]"),
        ("[[hypervisor.qemu]]\npath = 'x'\n", "hypervisor.qemu must be a section of keys"),
        ("runtime = true\n", "runtime must be a section of keys"),
        ("[cni\n", "is not TOML: .*line 1"),
        ("[cni]\nconf_dir = '/a'\nconf_dir = '/b'\n", "is not TOML: .*overwrite"),
        ("[cni]\nx = " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("[cni]\nx = " + "9" * 5_000, "is not TOML: .*digits"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        load(tmp_path, text)
    assert str(tmp_path) in str(raised.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes(b"[cni]\nconf_dir = '/t\xe4st'\n")
    with pytest.raises(ConfigError, match=f"{path} is not UTF-8"):
        config.load(str(path))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert config.load(str(fifo)).given == {}, "it must not wait for a writer"
    for path, said in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing", "No such file"),
        (Path("/dev/zero"), "more than 1048576 bytes"),
    ):
        with pytest.raises(ConfigError, match=f"{path} .*{said}"):
            config.load(str(path))


def test_huge_files_take_no_time(tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        load(tmp_path, "# ten MiB\n" * (1 << 20))
    assert time.process_time() - started < 1


def test_a_hundred_thousand_unknown_keys(tmp_path: Path) -> None:
    keys = "".join(f"k{n}=1\n" for n in range(100_000))
    assert len(keys) < 1 << 20
    started = time.process_time()
    loaded = load(tmp_path, f"[runtime]\n{keys}")
    assert time.process_time() - started < 20
    assert len(loaded.warnings) == 21
    assert loaded.warnings[-1] == "99980 more are not known, and passed over"
