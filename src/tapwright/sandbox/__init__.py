"""Sandboxes, as callers use them: one VM, its network namespace, its supervisor.

`lifecycle` runs and deletes (`deletion`: by the supervisor itself), `planning` is from a wish to a
specification (with `taps`, `needs`), `launching` starts a supervisor, `spares` finds one that
waits, and `report` is what passes between it and its caller, with the caller's `environment`.
`client` (with `wire`) asks one that runs; `execution` runs commands in its guest, and `balancing`
changes the guest's IPVS (with `ipvsadm`, its language). `readiness` says whether this host can run
one.
"""
