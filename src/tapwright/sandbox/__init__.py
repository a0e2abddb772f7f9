"""Sandboxes, as callers use them: one VM, its network namespace, its supervisor.

`lifecycle` runs and deletes, `planning` is from a wish to a specification (with `taps`, `needs`),
`launching` starts a supervisor, `spares` finds one that waits. A running one is asked by `client`
and `wire`; `execution` runs commands in its guest, and `balancing` changes the guest's IPVS (with
`ipvsadm`, its language). `readiness` tells whether there could be one.
"""
