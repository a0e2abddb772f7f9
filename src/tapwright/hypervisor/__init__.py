"""QEMU: its command line and process, QMP, hot-plug, templates, and the share of files.

`machine` is what starts, and its command line; `process` is QEMU's process, `jail` the root where
that and the share's daemon live, `users` their users, `accelerator` KVM or TCG. `qemu` is a machine
that runs: `qmp` talks to it (with `qmp_wire`), `nics` plugs NICs into its `ports`, with `backends`,
and `growth` adds memory and CPUs. `template` is a saved guest, `template_store` its files, with
`template_pages`, `warming` what happens before it is saved, `restoring` the start from it. `share`
is the files that the guest sees, `virtiofsd` the daemon, `share_device` the device.
"""
