"""Tapwright: the network of secure containers.

This package file stays empty of imports: the guest's agent and every short-lived command load it.
"""

__version__ = "0.1.0"
