"""The agent: what runs inside the VM. Single-threaded; waits for events only.

`__main__` is its event loop, `requests` what comes from the supervisor, `refusal` what an error
becomes. The network: `network` interfaces (with `renumbering`), `routing`, `rulesets` packet rules,
`resolver` a name server that asks the host, `forwarding` listeners and connections to them,
`counters`, `looking` and `probing` (in a process of its own, `probe`) for who wants to know where
packets go, `balancing` a program for IPVS and connections, beside the agent. Processes: `streams`
is one with a client, either a command (`commands`) or a container's (`container_process`, with
`console`); `containers` drives `crun`, with `cgroups`, `memory` and `sysctls`; `oom`, `oom_kills`
concern the kernel's choice of victims. The rest: `share` and `shared_files` the host's files,
`growth` memory and CPUs that come, `system` clock and hostname, `disk` the modules,
`leftovers` of an agent that died.
"""
