"""The OCI runtime: containers of podman, containerd, docker and CRI-O in sandboxes.

The verbs: `creation`, `life` (start, kill, pause, delete), `execution`, `reports` (state, ps,
events). What a platform hands over: `bundle`, `annotations`; `pods` finds the sandbox in which a
container lives, `size` is its VM's size. What becomes of the configuration in the guest: `guest`,
with `mounts`, `seccomp`, `sysctls`, `devices`, `net_devices`, `limits`, `memory`. On the host:
`state` on disk, `cgroup` what the container may use, `oom` the report of a kill for memory,
`statistics`, `hooks`, `log`. The shim, for which platforms wait, is `shim` (with `shim.sh`); its
descriptors are `stdio` and `console`, and `view` is the files that a process sees that joins the
shim's mount namespace.

What short verbs (state, kill, start) import counts: each call is a new process.
"""
