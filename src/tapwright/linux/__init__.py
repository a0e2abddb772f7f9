"""Verbs on kernel objects, by the package's own rtnetlink client and system calls. No module knows
a sandbox.

Networks: `netlink` with `links`, `addresses`, `routes`, `neighbours`, `entries` (the kernel's
messages as data), `settings` (/proc/sys/net), `tc`, `tuntap`, `macvtap`, `ethtool`, `announcement`;
`netns`. Packet rules: `packet_rules`, `nftables` and `xtables` with `nfnetlink`, `ipset`, `ipvs`,
`conntrack`. Looking at packets: `counted`, `peers`, `lookup` of routes, `probes`, `sightings`,
`nftrace`, `drop_reasons`. Processes: `process`, `ending` by pid, `signals`, `starving` for time
without a processor, `rlimits`, `cgroups`, `capabilities`, `user_namespaces`, `seccomp` with its own
filters, `libseccomp` for filters of named calls, `trial`, `unixsocket` (`credentials` for one in
another's name), `memfd`, `libc`. Files: `files` written as a whole, `claims` for directories that
are complete or absent, `foreign` for files of untrusted processes, `filelock`, `access` for what
another user can open or replace, `mounts`, `mount_table`, `inotify`, `fanotify`. The system:
`boot`, `modules` of the kernel, `distribution` and its packages.

Modules that are packed into the guest, too (`image/sources.py`), import little, and only the
standard library.
"""
