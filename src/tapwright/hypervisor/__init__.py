"""QEMU: its command line and process, QMP, hot-plug of NICs, and the choice of the accelerator.

`qemu` starts and ends the machine, `qmp` talks to it, `accelerator` finds out whether KVM works.
"""
