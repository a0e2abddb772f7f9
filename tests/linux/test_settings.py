"""Settings of the network as this kernel lists them, against its own files."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import links, netns, settings
from tapwright.linux.netlink import Netlink
from tapwright.linux.settings import Defaults, OfInterface


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Defaults:
    monkeypatch.setattr(settings, "_DEFAULTS_FILE", tmp_path / "defaults.json")
    return settings.defaults()


@pytest.fixture
def nl(scratch_netns: str, defaults: Defaults) -> Iterator[Netlink]:
    """In a namespace with an eth0."""
    with netns.entered(scratch_netns), Netlink() as opened:
        links.add_veth(opened, "eth0", "peer0")
        yield opened


def of(nl: Netlink, name: str) -> OfInterface:
    found = {link.name: specific for link, specific in links.listing_with_settings(nl)}
    return settings.of_interface(found[name])


def write(path: str, value: str) -> None:
    Path(settings.ROOT, path).write_text(value)


def read(path: str) -> str:
    return Path(settings.ROOT, path).read_text().strip()


def test_a_fresh_interface_has_nothing_special(nl: Netlink) -> None:
    # Unless this host's own settings are special, which new namespaces inherit.
    inherited = {
        f"{path.split('/')[0]}/{path.split('/')[-1]}" for path in settings.wide(settings.defaults())
    }
    assert of(nl, "eth0").special().keys() <= inherited
    assert of(nl, "lo").special(is_loopback=True).keys() <= inherited


def test_each_is_what_its_file_says(nl: Netlink) -> None:
    for key, value in of(nl, "eth0").values().items():
        protocol, name = key.split("/")
        assert value == read(f"{protocol}/conf/eth0/{name}"), key


def test_each_that_is_changed_is_special(nl: Netlink) -> None:
    """Every one that takes a 2: so the place of each in the kernel's list is right."""
    for key, value in of(nl, "eth0").values().items():
        protocol, name = key.split("/")
        path = f"{protocol}/conf/eth0/{name}"
        try:
            write(path, "2")
        except OSError:
            continue
        if read(path) == value:
            continue
        assert of(nl, "eth0").special().get(key) == read(path), key
        write(path, value)


def test_of_the_namespace(nl: Netlink, defaults: Defaults) -> None:
    write("ipv4/conf/all/forwarding", "0")  # it may have been the machine's
    before = settings.wide(defaults)
    write("core/somaxconn", "77")
    write("ipv6/conf/all/accept_source_route", "1")
    write("ipv4/conf/all/forwarding", "1")
    write("ipv4/neigh/eth0/gc_stale_time", "7")
    found = settings.wide(defaults)
    assert {path: value for path, value in found.items() if before.get(path) != value} == {
        "core/somaxconn": "77",
        "ipv4/conf/all/accept_redirects": "0",  # the kernel's rule for a router
        "ipv4/conf/all/forwarding": "1",
        "ipv4/conf/default/forwarding": "1",
        "ipv6/conf/all/accept_source_route": "1",
    }
    order = list(found)
    assert order.index("ipv4/conf/all/forwarding") < order.index("ipv4/conf/default/forwarding")
    assert settings.of_neighbours(defaults, ["eth0", "lo"]) == {"eth0": {"ipv4/gc_stale_time": "7"}}
    assert settings.default_of("core/somaxconn", defaults) == defaults.values["core/somaxconn"]
    assert settings.default_of("ipv4/conf/all/accept_source_route", defaults) == "0"
    assert settings.default_of("ipv4/conf/default/accept_source_route", defaults) == "1"


def test_no_ipv6_is_ipv6_off() -> None:
    assert OfInterface(b"", b"").special() == {"ipv6/disable_ipv6": "1"}


def test_defaults_are_found_out_once(tmp_path: Path, defaults: Defaults) -> None:
    kept = tmp_path / "defaults.json"
    stamp = kept.stat().st_mtime_ns
    assert settings.defaults() == defaults
    assert kept.stat().st_mtime_ns == stamp
    kept.write_text("{")
    assert settings.defaults() == defaults
    assert kept.stat().st_mtime_ns != stamp


def test_a_host_has_more_than_a_new_namespace(
    tmp_path: Path, defaults: Defaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nf_conntrack_max`, for instance: it is no reason to find them out each time."""
    rooms = [*defaults.rooms, "of_the_host_alone"]
    monkeypatch.setattr(settings, "_rooms", lambda: rooms)
    monkeypatch.setattr(settings, "_read_fresh", lambda: defaults)
    assert settings.defaults().rooms == sorted(rooms)
    stamp = (tmp_path / "defaults.json").stat().st_mtime_ns
    assert settings.defaults().values == defaults.values
    assert (tmp_path / "defaults.json").stat().st_mtime_ns == stamp


def test_defaults_of_a_host_that_has_loaded_more(tmp_path: Path, defaults: Defaults) -> None:
    fewer = defaults._replace(rooms=defaults.rooms[:-1], values={})
    (tmp_path / "defaults.json").write_text(
        str(fewer._asdict()).replace("'", '"')  # plain enough to be JSON
    )
    assert settings.defaults() == defaults


def test_a_write_from_outside_is_reported(scratch_netns: str) -> None:
    from tapwright.linux.inotify import Writes

    with netns.entered(scratch_netns):
        writes = Writes()
        for directory in settings.directories():
            writes.add(directory)
        assert not writes.drain()
        words = ["ip", "netns", "exec", Path(scratch_netns).name, "sysctl", "-qw"]
        for name in ("net.ipv4.conf.lo.arp_notify", "net.core.somaxconn", "net.ipv4.tcp_sack"):
            subprocess.run([*words, f"{name}=1"], check=True)
            assert writes.drain(), name
            assert not writes.drain()


def test_defaults_of_another_kernel(nl: Netlink) -> None:
    """A guest's kernel may begin with others than the host counts on."""
    before = settings.changed_defaults()
    write("ipv6/conf/default/temp_valid_lft", "172800")
    write("ipv4/conf/all/accept_source_route", "1")
    found = [setting for setting in settings.changed_defaults() if setting not in before]
    assert found == [
        ["ipv4/conf/all/accept_source_route", "0"],
        ["ipv6/conf/default/temp_valid_lft", "604800"],
        ["ipv6/conf/lo/temp_valid_lft", "604800"],
    ]
