"""Sandboxes, as callers use them: one VM, its network namespace, its supervisor.

`lifecycle` runs and deletes a sandbox (`deletion`: by its own supervisor). `planning` makes a
specification from a wish (with `taps`, `needs`). `launching` starts a supervisor, `spares` finds
one that waits; `report` has the messages between it and its caller, with the caller's
`environment`. `client` (with `wire`) asks a running sandbox; `execution` runs commands in its
guest, and `balancing` changes the guest's IPVS (with `ipvsadm`, its language). `readiness` says
whether this host can run a sandbox: each `finding` is about what is `installed`, or about the
`abilities` of kernel and processor.
"""
