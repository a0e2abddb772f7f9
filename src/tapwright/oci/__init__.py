"""The OCI runtime: containers of podman, containerd, docker and CRI-O in sandboxes.

The verbs: `creation`, `life` (start, kill, pause, delete), `execution`, `reports` (state, ps,
events), with `limits` and `signals` as the command line writes them. What a platform hands over:
`bundle`, `annotations`; `pods` finds the sandbox in which a container lives, `size` is its VM's
size. `guest` makes the configuration in the guest, with `mounts`, `seccomp`, `sysctls`, `devices`,
`net_devices`, `memory`, `home`, `users`. On the host: `state` on disk, `cgroup` for what the
container may use, `oom` for the report of a kill, `statistics`, `hooks`, `log`; `leftovers` takes
back what a reboot or a kill has left. The shim, for which platforms wait, is `shim` (with
`shim.sh`); its descriptors are `stdio` and `console`, and `view` shows the container's files to a
process that joins the shim's mount namespace.

The short verbs (state, kill, start) import as little as possible: each call is a new process.
"""
