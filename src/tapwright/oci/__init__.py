"""The OCI runtime: containers of podman, containerd, docker and CRI-O in sandboxes.

One module a subject: `bundle` what a platform hands over, `pods` in which sandbox a container
lives, `guest` and `mounts` what becomes of its configuration in the guest, `size` the VM's size,
`state` what is on disk, `control` the supervisor's socket, `shim` the process that platforms wait
for, `console` terminals, `hooks`. The verbs: `creation`, `life`, `execution`, `reports`.

What short verbs (state, kill, start) import counts: each call is a new process.
"""
