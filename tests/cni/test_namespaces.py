"""A namespace's path that leads to another one by now, or nowhere."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tapwright.cni import Attachment, CniError, namespaces
from tapwright.cni.namespaces import Namespace
from tests.cni.fakes import RESULT, Fakes, network
from tests.cni.reference import Reference, addresses, attachment, inside, links, output

Make = Callable[[], str]
INSISTING = '[ -n "$CNI_NETNS" ] || { echo no namespace >&2; exit 1; }'


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def replaced(path: str) -> None:
    """Another namespace at the path, with an interface eth0 of somebody else in it."""
    name = os.path.basename(path)
    ip("netns", "delete", name)
    ip("netns", "add", name)
    ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    ip("-n", name, "address", "add", "192.0.2.5/24", "dev", "eth0")


def in_of(fakes: Fakes, path: str) -> Attachment:
    fakes.plugin("p")
    web = Attachment("web", "eth0", path)
    fakes.runtime().add(network("p"), web)
    return web


def test_a_namespace_is_known(make_netns: Make, tmp_path: Path) -> None:
    one, other = make_netns(), make_netns()
    known = namespaces.at(one)
    assert known is not None
    assert (known.device, known.inode) == (os.stat(one).st_dev, os.stat(one).st_ino)
    assert known.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert known.cookie, "this kernel gives them out"
    assert namespaces.leads_to(one, known)
    assert not namespaces.leads_to(other, known)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for path in ("/proc/self/ns/mnt", str(tmp_path / "file"), str(tmp_path / "fifo"), "/nowhere"):
        assert namespaces.at(path) is None


def test_numbers_that_are_used_again(make_netns: Make) -> None:
    """The kernel gives the number of an inode to the next namespace, but never a cookie; after a
    boot it begins anew with both. Where the cookie is unknown, the rest has to do."""
    path = make_netns()
    known = namespaces.at(path)
    assert known is not None
    assert not namespaces.leads_to(path, known._replace(cookie=known.cookie + 1))
    assert not namespaces.leads_to(path, known._replace(boot="another"))
    assert not namespaces.leads_to(path, known._replace(inode=known.inode + 1))
    assert namespaces.leads_to(path, known._replace(cookie=0))


@pytest.mark.parametrize(
    "value", [None, 1, [], {}, {"device": 1}, {"device": 1, "inode": "2", "boot": "x"}]
)
def test_what_is_no_namespace_of_a_file(value: object) -> None:
    assert namespaces.from_json(value) is None
    assert namespaces.from_json(Namespace(1, 2, "x", 3)._asdict()) == (1, 2, "x", 3)


def test_looking_leaves_the_thread_where_it_is(make_netns: Make) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    namespaces.at(make_netns())
    with namespaces.stand_in("eth0") as path:
        assert os.readlink("/proc/thread-self/ns/net") == before
        assert links(path) == ["lo", "eth0"]
    assert not os.path.exists(path)


def test_the_interface_of_a_stand_in_is_never_left_behind(make_netns: Make) -> None:
    """Some plugins move at DEL what bears the name, to where it came from."""
    path = make_netns()
    with namespaces.stand_in("eth0") as stand_in:
        inside(stand_in, "ip", "link", "set", "eth0", "netns", os.path.basename(path))
        assert "eth0" in links(path)
    assert "eth0" not in links(path)


def test_delete_gets_no_other_namespace(fakes: Fakes, make_netns: Make) -> None:
    path = make_netns()
    web = in_of(fakes, path)
    replaced(path)
    fakes.runtime().delete(network("p"), web)
    (run,) = fakes.seen("DEL")
    assert run.environment["CNI_NETNS"] == ""
    assert run.config["prevResult"] == RESULT
    assert fakes.runtime().attachments() == ([], [])


def test_add_after_the_namespace_has_gone(fakes: Fakes, make_netns: Make) -> None:
    """As after a boot of the host: the container has its id, and may have its path again. What is
    left of the first is taken down before."""
    path = make_netns()
    web = in_of(fakes, path)
    replaced(path)
    assert fakes.runtime().add(network("p"), web) == RESULT
    (stale,) = fakes.seen("DEL")
    assert stale.environment["CNI_NETNS"] == ""
    with pytest.raises(CniError, match="run DEL before another ADD"):
        fakes.runtime().add(network("p"), web)


def test_add_to_a_namespace_that_lives_by_another_path(fakes: Fakes, make_netns: Make) -> None:
    """The path of the first ADD has gone, and the namespace has not."""
    path = make_netns()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    web = in_of(fakes, f"/proc/{os.getpid()}/fd/{fd}")
    os.close(fd)
    with pytest.raises(CniError, match="run DEL before another ADD"):
        fakes.runtime().add(network("p"), web._replace(netns=path))
    assert fakes.seen("DEL") == []


def test_check_is_not_of_another_namespace(fakes: Fakes, make_netns: Make) -> None:
    path = make_netns()
    web = in_of(fakes, path)
    fakes.runtime().check(network("p"), web)
    replaced(path)
    with pytest.raises(CniError, match="does not lead to the namespace"):
        fakes.runtime().check(network("p"), web)
    assert len(fakes.seen("CHECK")) == 1


def test_gc_sees_that_a_namespace_is_another(fakes: Fakes, make_netns: Make) -> None:
    path = make_netns()
    in_of(fakes, path)
    assert not fakes.runtime().gc(network("p")).deleted
    replaced(path)
    assert len(fakes.runtime().gc(network("p")).deleted) == 1
    (run,) = fakes.seen("DEL")
    assert run.environment["CNI_NETNS"] == ""


def test_another_path_of_the_same_namespace(fakes: Fakes, make_netns: Make) -> None:
    """By whichever path a caller names it; and by that of ADD when the caller's leads elsewhere."""
    path = make_netns()
    web = in_of(fakes, path)
    with open(path) as held:
        again = f"/proc/{os.getpid()}/fd/{held.fileno()}"
        fakes.runtime().delete(network("p"), web._replace(netns=again))
        fakes.runtime().add(network("p"), web)
        fakes.runtime().delete(network("p"), web._replace(netns=make_netns()))
    assert [run.environment["CNI_NETNS"] for run in fakes.seen("DEL")] == [again, path]


def test_an_attachment_whose_namespace_is_not_known(fakes: Fakes, make_netns: Make) -> None:
    """Of libcni, or of a version before: the path is all there is to go by."""
    path = make_netns()
    web = in_of(fakes, path)
    file = fakes.cache / "results" / "net-web-eth0"
    content = json.loads(file.read_text())
    assert Namespace(**content.pop("tapwright")["namespace"]) == namespaces.at(path)
    file.write_text(json.dumps(content))
    (entry,), _ = fakes.runtime().attachments()
    assert entry.namespace is None
    fakes.runtime().check(network("p"), web)
    fakes.runtime().delete(network("p"), web)
    (run,) = fakes.seen("DEL")
    assert run.environment["CNI_NETNS"] == path


def test_a_plugin_that_insists_on_a_namespace(fakes: Fakes, make_netns: Make) -> None:
    """The namespace is gone: it is asked again with a new one, the others are not."""
    path = make_netns()
    fakes.plugin("quiet")
    fakes.plugin(
        "insisting",
        body=f"{INSISTING}; [ $CNI_COMMAND != DEL ] || "
        f"nsenter --net=$CNI_NETNS ip -o link >{fakes.directory}/links",
    )
    net, web = network("quiet", "insisting", "quiet"), Attachment("web", "eth0", path)
    fakes.runtime().add(net, web)
    ip("netns", "delete", os.path.basename(path))
    fakes.runtime().delete(net, web)
    runs = fakes.seen("DEL")
    assert [run.kind for run in runs] == ["quiet", "insisting", "insisting", "quiet"]
    assert [bool(run.environment["CNI_NETNS"]) for run in runs] == [False, False, True, False]
    assert [line.split()[1] for line in (fakes.directory / "links").open()] == ["lo:", "eth0:"]
    assert fakes.runtime().attachments() == ([], [])


def test_a_plugin_that_refuses_a_new_namespace_too(fakes: Fakes, make_netns: Make) -> None:
    """The error has its first words, and all others have run."""
    path = make_netns()
    fakes.plugin("quiet")
    fakes.plugin("never", body="[ $CNI_COMMAND != DEL ] || { echo $CNI_NETNS is bad >&2; exit 1; }")
    net, web = network("quiet", "never"), Attachment("web", "eth0", path)
    fakes.runtime().add(net, web)
    ip("netns", "delete", os.path.basename(path))
    with pytest.raises(ExceptionGroup) as caught:
        fakes.runtime().delete(net, web)
    (error,) = caught.value.exceptions
    assert "1: is bad" in str(error)
    assert [run.kind for run in fakes.seen("DEL")] == ["never", "never", "quiet"]
    assert len(fakes.runtime().attachments()[0]) == 1, "it must be possible to try again"


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return Reference(tmp_path)


def test_reference_plugins_leave_another_namespace_alone(
    reference: Reference, make_netns: Make
) -> None:
    path = make_netns()
    net = reference.network(reference.bridge())
    try:
        reference.runtime.add(net, attachment(path))
        assert reference.leased()
        replaced(path)
        reference.runtime.delete(net, attachment(path))
        assert addresses(path) == ["192.0.2.5/24"]
        assert not reference.leased()
    finally:
        output("ip", "link", "delete", "brcni")


def test_reference_plugins_give_back_what_is_outside_the_namespace(
    reference: Reference, make_netns: Make
) -> None:
    """sbr refuses DEL without a namespace, and is the first to be asked."""
    path = make_netns()
    net = reference.network(
        reference.bridge(),
        {"type": "tuning", "mtu": 1400},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "sbr"},
    )
    ports = [{"hostPort": 8086, "containerPort": 80, "protocol": "tcp"}]
    web = attachment(path, capability_args={"portMappings": ports})
    try:
        reference.runtime.add(net, web)
        assert "8086" in output("iptables-save")
        assert inside(path, "ip", "rule").count("lookup 100"), "sbr has done its work"
        ip("netns", "delete", os.path.basename(path))
        reference.runtime.delete(net, web)
        assert not reference.leased()
        assert "8086" not in output("iptables-save")
        assert reference.runtime.attachments() == ([], [])
    finally:
        output("ip", "link", "delete", "brcni")
