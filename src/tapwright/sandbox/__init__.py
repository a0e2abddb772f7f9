"""A sandbox from its making to its end: one VM, its network namespace, its supervisor.

What callers use: `lifecycle` to run and delete, `registry` to find and list, `client` to ask a
running one for something, `execution` to run commands in a guest.
The supervisor is a process of its own: `supervisor` its life, `bringup` how it gets the guest
onto the network, `control` what it can be asked while it runs. On disk, a sandbox is a directory:
`record` what it is and holds, `ownership` who may do what to it, `teardown` takes all of it back.
"""
