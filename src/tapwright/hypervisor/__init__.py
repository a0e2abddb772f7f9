"""QEMU: its command line and process, QMP, hot-plug of NICs, and the choice of the accelerator.

`qemu` starts and ends the machine, `qmp` talks to it, `nics` plugs NICs in and out of its
`ports`, `accelerator` finds out whether KVM works.
"""
