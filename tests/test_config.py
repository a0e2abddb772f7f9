"""configuration.toml: what is read, and what is said of the rest."""

from pathlib import Path

import pytest

from tapwright import config
from tapwright.errors import ConfigError


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "configuration.toml"
    path.write_text(text)
    return config.load(str(path))


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLACES", ())
    monkeypatch.delenv(config.ENVIRONMENT_VARIABLE, raising=False)
    loaded = config.load()
    assert loaded == config.Config()
    assert loaded.cni.bin_dirs == ("/opt/cni/bin", "/usr/lib/cni")


def test_keys_are_read_and_unknown_ones_reported(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "[hypervisor.qemu]\ndefault_memory = 512\nmachine_type = 'q35'\n"
        "[cni]\nbin_dirs = ['/a', '/b']\n"
        "[proxy.kata]\npath = '/x'\n",
    )
    assert loaded.qemu.default_memory == 512
    assert loaded.cni.bin_dirs == ("/a", "/b")
    assert loaded.unknown == ("[hypervisor.qemu] machine_type", "[proxy.kata] path")


def test_place_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[hypervisor.qemu]\ndefault_vcpus = 3\n")
    monkeypatch.setenv(config.ENVIRONMENT_VARIABLE, str(path))
    assert config.load().qemu.default_vcpus == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hypervisor.qemu]\npath = 7\n", r"\[hypervisor.qemu\] path = 7: must be a string"),
        ("[hypervisor.qemu]\ndefault_vcpus = 0\n", "must be at least 1"),
        ("[hypervisor.qemu]\ndefault_vcpus = true\n", "must be a whole number"),
        ("[hypervisor.qemu]\npcie_root_port = 121\n", "must be at most 120"),
        ("[cni]\nbin_dirs = '/x'\n", "must be a list of strings"),
        ("[cni\n", "is not TOML: .*line 1"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        load(tmp_path, text)
    assert str(tmp_path) in str(raised.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="/nowhere can't be read"):
        config.load("/nowhere")
