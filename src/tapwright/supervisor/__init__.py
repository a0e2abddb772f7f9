"""The supervisor: the one long-lived process of a sandbox, and others that outlive their caller.

`main` is the process, `prelude` what it begins first, with `attachments` (CNI), and `life` the
rest: `bringup` how the guest comes onto its networks, `guest` how the VM starts, `room` that it is
large enough, `monitor` the network monitor's process. `background` is the process of what no
sandbox waits for: `making` a template, being a `spare`, with a guest that is `prepared`.
No caller's process loads any of it (but `tapwright image`, which makes templates).
"""
