"""The keys and certificates of a cluster, made by openssl on the spot."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

DAYS = "30"


class Certificates:
    """An authority, and those that it has signed for: `NAME.crt` and `NAME.key` in one
    directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = directory / "ca.crt"
        subject = ["-subj", "/CN=tests", "-out", str(self.authority)]
        _openssl("req", "-x509", "-days", DAYS, *self._key("ca"), *subject)
        # Tokens of service accounts.
        _openssl("genrsa", "-out", str(self.key("tokens")), "2048")
        public = ["-pubout", "-out", str(self.certificate("tokens"))]
        _openssl("rsa", "-in", str(self.key("tokens")), *public)

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def sign(self, name: str, user: str, group: str = "", hosts: Sequence[str] = ()) -> None:
        """For a client, and for a server where `hosts` ("DNS:a", "IP:b") are given."""
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        subject = f"/O={group}/CN={user}" if group else f"/CN={user}"
        _openssl("req", "-subj", subject, *self._key(name), "-out", str(request))
        lines = ["extendedKeyUsage=clientAuth,serverAuth"]
        if hosts:
            lines.append(f"subjectAltName={','.join(hosts)}")
        extensions.write_text("\n".join(lines))
        signing = ["-CA", str(self.authority), "-CAkey", str(self.key("ca")), "-CAcreateserial"]
        files = ["-in", str(request), "-out", str(self.certificate(name))]
        extended = ["-extfile", str(extensions)]
        _openssl("x509", "-req", "-days", DAYS, *signing, *files, *extended)

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "rsa:2048", "-nodes", "-keyout", str(self.key(name))]


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"openssl {words}: {done.stderr}"
