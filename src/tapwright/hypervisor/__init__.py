"""QEMU: its command line and process, QMP, hot-plug, templates, and the share of files.

`machine` is a machine to start, and its command line. `process` is QEMU's process, `jail` the root
in which QEMU and the share's daemon live, `users` their users, `orphans` ends a process that was
left behind, `accelerator` chooses KVM or TCG. `qemu` is a running machine: `qmp` talks to it (with
`qmp_wire`), `nics` plugs NICs into its `ports`, with `backends`, and `growth` adds memory and CPUs.
`template` is a saved guest, `template_store` its files, with `template_pages`; `warming` prepares a
guest before it is saved, `restoring` starts one from a template. `share` is the files that the
guest sees, `virtiofsd` the daemon, `share_device` the device.
"""
