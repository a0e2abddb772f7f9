"""What podman shows of what a container uses. (Pods: test_cri.)"""

from collections.abc import Iterator

import pytest

from tests.platforms import figures
from tests.platforms.podman import Podman


@pytest.fixture
def container(podman: Podman, podman_leaves_nothing: None) -> Iterator[str]:
    words = "run", "--detach", "--name", "figures", "--network", "podman", "--memory", "100m"
    podman.output(*words, "busybox", "sleep", "1000")
    yield "figures"
    podman.output("rm", "--force", "--time", "0", "figures")


def test_podman(podman: Podman, container: str) -> None:
    template = "{{.ContainerStats.CPUNano}} {{.ContainerStats.MemUsage}} {{.NetIO}}"

    def shown() -> tuple[int, int]:
        words = "stats", "--no-stream", "--no-reset", "--format", template, container
        processors, memory, received, *_ = podman.output(*words).split()
        assert received not in ("0B", "--")
        return int(processors), int(memory)

    def execute(words: tuple[str, ...]) -> None:
        assert podman.run("exec", container, *words).returncode in (0, 143)  # that of `timeout`

    figures.check(shown, execute, podman.inspect(container)["State"]["Pid"])
