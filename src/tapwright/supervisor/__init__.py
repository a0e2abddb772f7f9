"""The supervisor: the one long-lived process of a sandbox, and others that outlive their caller.

`main` is the process, `prelude` does what comes first, with `attachments` (CNI) and `starts`, which
has it wait for its turn (`turns`), and `life` the rest: `bringup` brings the guest onto its
networks, `guest` starts the VM, `vm_size` makes it large enough, `host_kernel` gives it settings
and the time of the host, `monitor` runs the network monitor, and `takedown` takes the sandbox back.
`background` is a process for work that no sandbox waits for: `template_making`, and `spare`, a
supervisor with a guest that is `prepared`. No caller's process loads any of it (but `tapwright
image`, which makes templates).
"""
