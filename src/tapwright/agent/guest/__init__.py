"""The agent, which runs inside the VM. It is single-threaded, and waits for events only.

`__main__` is its event loop; `requests` says what a request must have, and `refusal` is the error
that answers one. The network: `network` sets interfaces (with `renumbering`) and `routing` the
routes; `rulesets` sets packet rules; `resolver` is a name server that asks the host; `forwarding`
has listeners and connections to them, and `sockets` the host's sockets (both with `connections`),
which `covering` shows in directories;
`counters` counts. `looking` and `probing` (in a process of its own, `probe`) show where packets go.
`balancing` is a program beside the agent, for IPVS and connections. Processes: `streams` is a
process with a client, which is either a command (`commands`) or a container's (`container_process`,
with `console`); `containers` drives `crun`, with `executable`, `limits`, `cgroups`, `memory`,
`propagation` and `sysctls`; `oom` and `oom_kills` concern the processes that the kernel kills when
memory is used up. The rest: `share` and `shared_files` for the host's files, `growth` for memory
and CPUs that are plugged in, `system` for clock and hostname, `disk` for kernel modules and device
nodes, `totals` for metrics, `events` for descriptors and children, `files` of the kernel,
`leftovers` of an agent that died.
"""
