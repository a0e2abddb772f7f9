"""Kubernetes' programs, from Debian's source package and by Debian's Go, and what is beside them.

    .venv/bin/python -m tests.kubernetes.build        # minutes the first time; prints the directory

Bookworm is the last release whose source package has the whole of Kubernetes (1.20.2); since then
it is that of kubectl alone. The packages are fetched by apt with lists of their own, and unpacked,
not installed. `KUBERNETES=DIRECTORY` names programs of another version in place of those:
kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet, kubectl, etcd and
docker-registry. With kubeadm, the test that begins with bare machines runs, too. What else is there
comes before the machine's own on the nodes: containerd, with its shim (containerd-shim-runc-v2) and
ctr, or runc.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SUITE = "bookworm"
PROGRAMS = "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"
SERVER = "kube-apiserver"
_PACKAGED = {"etcd": "etcd-server", "docker-registry": "docker-registry"}
"""Program → its package."""
_PACKAGES = "golang-1.19-go", "golang-1.19-src", *_PACKAGED.values()
_GO = "usr/lib/go-1.19"
_VERSION = "component-base/version", "client-go/pkg/version"
_OPENAPI = "k8s.io/kube-openapi/cmd/openapi-gen"
_APT = """\
Dir::State::lists "{home}/lists";
Dir::State::status "{home}/status";
Dir::Cache "{home}";
Dir::Etc::sourcelist "{home}/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
"""


def directory() -> Path:
    """Where the programs are, or will be."""
    given = os.environ.get("KUBERNETES")
    return Path(given) if given else cache() / "bin"


def ensure() -> Path:
    """Build what is lacking."""
    programs = directory()
    if "KUBERNETES" in os.environ:
        missing = lacking(programs)
        assert not missing, f"{programs} lacks {', '.join(missing)}"
        return programs
    kept = cache()
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lacking(programs):
            _Build(kept).run()
    return programs


def lacking(programs: Path) -> list[str]:
    """The programs that are not there."""
    return [one for one in (*PROGRAMS, SERVER, *_PACKAGED) if not (programs / one).exists()]


def environment(programs: Path) -> dict[str, str]:
    """That of the cluster's programs, which find each other first."""
    # A kubelet without a network would wait for that cloud's answer.
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def version(programs: Path) -> str:
    """As in "1.20.2"."""
    said = subprocess.check_output([programs / "kubelet", "--version"], text=True)
    return said.split()[-1].removeprefix("v")


class _Build:
    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.unpacked = cache / "unpacked"
        self.go_path = cache / "gopath"
        # Before modules, Go found packages by where they are.
        self.source = self.go_path / "src/k8s.io/kubernetes"
        self.programs = cache / "bin"

    def run(self) -> None:
        self._fetch()
        self.programs.mkdir(exist_ok=True)
        for program in _PACKAGED:
            shutil.copy(self.unpacked / "usr/bin" / program, self.programs / program)
        built = [one for one in lacking(self.programs) if one not in _PACKAGED]
        if not built:
            return
        generator = self.cache / "openapi-gen"
        self._go("build", "-o", str(generator), f"k8s.io/kubernetes/vendor/{_OPENAPI}")
        self._describe_api(generator)
        release = self._release()
        major, minor, _ = release.split(".")
        told = {"gitVersion": f"v{release}", "gitMajor": major, "gitMinor": minor}
        flags = [
            f"-X k8s.io/kubernetes/vendor/k8s.io/{room}.{key}={value}"
            for room in _VERSION
            for key, value in told.items()
        ]
        linking = ["-ldflags", " ".join(["-s", "-w", *flags])]
        # Without the SDKs of clouds, and without docker.
        options = ["-trimpath", "-tags", "providerless,dockerless", *linking]
        commands = [f"./cmd/{one}" for one in built]
        self._go("build", *options, "-o", f"{self.programs}/", *commands)

    def _fetch(self) -> None:
        home, packages = self.cache / "apt", self.cache / "packages"
        (home / "lists/partial").mkdir(parents=True, exist_ok=True)
        (home / "archives/partial").mkdir(parents=True, exist_ok=True)
        packages.mkdir(exist_ok=True)
        (home / "status").touch()
        (home / "conf").write_text(_APT.format(home=home))
        archive = f"[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror()}"
        kinds = ("deb", "deb-src")
        (home / "sources.list").write_text(
            "".join(f"{kind} {archive} {SUITE} main\n" for kind in kinds)
        )
        environment = {"APT_CONFIG": str(home / "conf")}
        for words in (
            ("update",),
            ("download", *_PACKAGES),
            ("source", "--download-only", "kubernetes"),
        ):
            _run("apt-get", "-qq", *words, cwd=packages, **environment)
        for package in packages.glob("*.deb"):
            _run("dpkg-deb", "--extract", str(package), str(self.unpacked))
        if not self.source.exists():
            half = self.source.with_name("half")
            half.mkdir(parents=True, exist_ok=True)
            (whole,) = packages.glob("kubernetes_*.orig.tar.*")
            # Debian's patches are of kubectl's output.
            _run("tar", "-xf", str(whole), "-C", str(half), "--strip-components=1")
            half.rename(self.source)

    def _release(self) -> str:
        (whole,) = (self.cache / "packages").glob("kubernetes_*.orig.tar.*")
        # "kubernetes_1.20.5+really1.20.2.orig.tar.gz"
        return whole.name.partition(".orig")[0].rpartition("_")[2].rpartition("really")[2]

    def _describe_api(self, generator: Path) -> None:
        """Generate the descriptions of the API server's objects, as upstream's Makefile does."""
        found = subprocess.check_output(
            ["grep", "-rl", "--include=*.go", "// *+k8s:openapi-gen=", "pkg", "staging/src/k8s.io"],
            cwd=self.source,
            text=True,
        ).splitlines()
        passed_over = "/code-generator/", "/sample-apiserver/", "_test.go"
        packages = {
            f"k8s.io/kubernetes/{Path(file).parent}".replace("staging/src", "vendor")
            for file in found
            if not any(word in file for word in passed_over)
        }
        inputs = ["-i", ",".join(sorted(packages)), "-p", "k8s.io/kubernetes/pkg/generated/openapi"]
        header = ["-h", "hack/boilerplate/boilerplate.generatego.txt", "-r", "/dev/null"]
        name = ["-O", "zz_generated.openapi"]
        self._in_source(str(generator), "--logtostderr", *inputs, *name, *header)

    def _go(self, *words: str) -> None:
        self._in_source(str(self.unpacked / _GO / "bin/go"), *words)

    def _in_source(self, *words: str) -> None:
        temporary = self.cache / "tmp"
        temporary.mkdir(exist_ok=True)
        path = f"{self.unpacked / _GO / 'bin'}:{os.environ['PATH']}"
        settings = {
            "GOROOT": str(self.unpacked / _GO),
            "GOPATH": str(self.go_path),
            "GOCACHE": str(self.cache / "gocache"),
            "GOTMPDIR": str(temporary),
            "GO111MODULE": "off",
            "GOFLAGS": "-p=2",
            "CGO_ENABLED": "0",
            "PATH": path,
        }
        _run("nice", "-n", "19", *words, cwd=self.source, **settings)


def cache() -> Path:
    """What is kept of one run for later ones."""
    return Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "tapwright/kubernetes"


def mirror() -> str:
    """Where this machine's apt has Debian from."""
    said = subprocess.check_output(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)", "Created-By: Packages"],
        text=True,
    )
    archives = [line.split()[0] for line in said.splitlines() if line.endswith(" Debian")]
    return next(archive for archive in archives if "security" not in archive)


def _run(*words: str, cwd: Path | None = None, **environment: str) -> None:
    whole: Mapping[str, str] = {**os.environ, **environment}
    done = subprocess.run(
        words, check=False, cwd=cwd, env=whole, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, f"{' '.join(words[:6])}: {done.stderr[-2000:]}"


if __name__ == "__main__":
    print(ensure())
