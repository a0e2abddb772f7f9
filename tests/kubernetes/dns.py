"""The cluster's name server, as far as tests need one: A records of services (RFC 1035).

No release of Debian has CoreDNS. Headless services have their ready pods' addresses.
"""

import socket
import struct
import threading
from ipaddress import ip_address

from tests.kubernetes.control import DNS, Control
from tests.kubernetes.networks import WIRE

_DOMAIN = ["svc", "cluster", "local"]
_A, _NAME_ERROR, _ANSWER = 1, 3, 0x8480  # a response with authority; recursion is available
_SECONDS = 5


class NameServer:
    """Answers at an address of the control plane, behind the cluster's own service for that."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def start(self) -> None:
        self._socket.bind((f"{WIRE}.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()
        meta = {"name": "kube-dns", "namespace": "kube-system"}
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
        service = {"clusterIP": DNS, "ports": ports}
        subsets = [{"addresses": [{"ip": f"{WIRE}.1"}], "ports": ports}]
        self._control.apply(
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
            {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets},
        )

    def stop(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                question, sender = self._socket.recvfrom(512)
            except OSError:  # closed
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, message: bytes) -> bytes:
        labels, at = [], 12
        while size := message[at]:
            labels.append(message[at + 1 : at + 1 + size].decode())
            at += 1 + size
        question = message[12 : at + 5]
        (kind,) = struct.unpack_from("!H", message, at + 1)
        found = self._addresses(labels)
        addresses = found if kind == _A else []
        records = b"".join(
            # The name is that of the question.
            struct.pack("!HHHIH", 0xC00C, _A, 1, _SECONDS, 4) + ip_address(one).packed
            for one in addresses or []
        )
        flags = _ANSWER | (_NAME_ERROR if found is None else 0)
        counts = struct.pack("!HHHHH", flags, 1, len(addresses or []), 0, 0)
        return message[:2] + counts + question + records

    def _addresses(self, labels: list[str]) -> list[str] | None:
        if labels[2:] != _DOMAIN:
            return None
        name, namespace = labels[:2]
        place = "-n", namespace, name, "-o"
        found = self._control.kubectl("get", "service", *place, "jsonpath={.spec.clusterIP}")
        if found.returncode:
            return None
        if found.stdout != "None":
            return [found.stdout]
        path = "jsonpath={.subsets[*].addresses[*].ip}"
        return self._control.output("get", "endpoints", *place, path).split()
