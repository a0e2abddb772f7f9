"""The command's tests use the CNI tests' namespaces."""

from tests.cni.conftest import make_netns

__all__ = ["make_netns"]
