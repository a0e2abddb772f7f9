"""Verbs on kernel objects, over our own rtnetlink and system calls. Nothing here knows a sandbox.

Networks: `netlink` with `links`, `addresses`, `routes`, `neighbours`, `entries` (messages as the
kernel writes them), `settings` (/proc/sys/net), `tc`, `tuntap`, `macvtap`, `ethtool`,
`announcement`; `netns`; packet rules: `packet_rules`, `nftables` and `xtables` with `nfnetlink`,
`ipset`, `ipvs`, `conntrack`. To look at packets: `counted`, `peers`, `lookup` of routes, `probes`,
`sightings`, `nftrace`, `drop_reasons`. Processes: `process`, `ending` by pid, `signals`, `cgroups`,
`capabilities`, `seccomp` a filter of its own, `libseccomp` one made of names, `trial`,
`unixsocket`, `memfd`, `libc`. Files: `files` written whole, `claims` directories that are whole or
absent, `foreign` those of others, `filelock`, `access` what another user can open or replace,
`mounts`, `mount_table`, `inotify`, `fanotify`. The system: `boot`, `modules` of the kernel,
`distribution` and its packages.

What is also packed into the guest (`image/sources.py`) imports the standard library only, and
little of it.
"""
