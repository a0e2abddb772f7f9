"""A package archive in the place of Kubernetes' own, and the images of its registry.

What is in the packages is what cmd/krel/templates/latest of the repository kubernetes/release puts
there: programs, a unit that starts the kubelet as kubeadm has configured it, CNI plugins.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.kubernetes import build
from tests.kubernetes.registry import Registry
from tests.sandboxes import PLUGINS

SOURCE = "registry.k8s.io"
_DEPENDS = {
    "kubeadm": "",
    "kubectl": "",
    "kubelet": "iproute2, iptables, kubernetes-cni, mount, util-linux",
    "kubernetes-cni": "",
}
_UNIT = """\
[Unit]
Description=The kubelet, as kubeadm has configured it
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0
[Service]
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
--kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
$KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
Restart=always
RestartSec=10
[Install]
WantedBy=multi-user.target
"""
_ENABLE = "#!/bin/sh\nset -e\nsystemctl daemon-reload\nsystemctl enable --now kubelet\n"
# Debian's etcd is 3.5, where two options had other names.
_ETCD = """\
#!/bin/sh
for word in "$@"; do
    shift
    case $word in
    --feature-gates=InitialCorruptCheck=true) word=--experimental-initial-corrupt-check=true ;;
    --watch-progress-notify-interval=*) word=--experimental-${word#--} ;;
    esac
    set -- "$@" "$word"
done
exec /usr/bin/etcd "$@"
"""
_TABLES = "iptables", "iptables-restore", "iptables-save"


def write(programs: Path, home: Path) -> None:
    """The packages, and the list of them that apt reads."""
    version = build.version(programs)
    listed = []
    for name, depends in _DEPENDS.items():
        tree = home / name
        into = tree / ("opt/cni/bin" if name == "kubernetes-cni" else "usr/bin")
        into.mkdir(parents=True)
        contents = Path(PLUGINS).iterdir() if name == "kubernetes-cni" else [programs / name]
        for file in contents:
            shutil.copy(file, into / file.name)
        fields = {"Package": name, "Version": version, "Architecture": "amd64"}
        fields |= {"Maintainer": "tests <tests@localhost>", "Description": name}
        fields |= {"Depends": depends} if depends else {}
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(_paragraph(fields))
        if name == "kubelet":
            unit = tree / "usr/lib/systemd/system/kubelet.service"
            unit.parent.mkdir(parents=True)
            unit.write_text(_UNIT)
            script = tree / "DEBIAN/postinst"
            script.write_text(_ENABLE)
            script.chmod(0o755)
        file = home / f"{name}.deb"
        _run("dpkg-deb", "--build", "--root-owner-group", "-Znone", str(tree), str(file))
        shutil.rmtree(tree)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        fields |= {"Filename": f"./{file.name}", "Size": str(file.stat().st_size)}
        listed.append(_paragraph({**fields, "SHA256": digest}))
    (home / "Packages").write_text("\n".join(listed))


def fill(registry: Registry, programs: Path, home: Path) -> None:
    """The images that kubeadm wants, by the names that it has for them. That of CoreDNS does
    nothing."""
    home.mkdir()
    version = f"--kubernetes-version={build.version(programs)}"
    said = _run(str(programs / "kubeadm"), "config", "images", "list", version)
    for image in said.split():
        name = image.removeprefix(f"{SOURCE}/")
        program = name.partition(":")[0]
        if program == "pause":
            registry.add(name, f"CMD {json.dumps(['sleep', 'infinity'])}")
        elif program == "etcd":
            _put(programs / program, home / program, "usr/bin")
            script = home / program / "usr/local/bin/etcd"
            script.parent.mkdir(parents=True)
            script.write_text(_ETCD)
            script.chmod(0o755)
            registry.add(name, "COPY . /", files=home / program)
        elif program == "kube-proxy":
            _put_tables(home / program)
            _put(programs / program, home / program, "usr/local/bin")
            registry.add(name, "COPY . /", files=home / program)
        elif (programs / program).exists():
            registry.add(name, f"COPY {program} /usr/local/bin/", files=programs)
        else:
            registry.add(name)


def _put_tables(tree: Path) -> None:
    """iptables, which kube-proxy runs."""
    program = Path(shutil.which("iptables-nft") or "iptables-nft").resolve()
    _put(program, tree, "usr/sbin")
    for name in _TABLES:
        for link in (name, name.replace("iptables", "ip6tables")):
            (tree / "usr/sbin" / link).symlink_to(program.name)
    (modules,) = Path("/usr/lib").glob("*/xtables")
    shutil.copytree(modules, tree / str(modules).lstrip("/"), symlinks=True)


def _put(program: Path, tree: Path, directory: str) -> None:
    """With the libraries that it is linked to."""
    (tree / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(program, tree / directory)
    told = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", told):
        copied = tree / library.lstrip("/")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), copied)


def _paragraph(fields: dict[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def _run(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
