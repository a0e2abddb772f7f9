"""The requests to a running sandbox, on the supervisor's side of the control socket.

`server` is the socket. `operations` are the verbs of `kata-network`, with `kata` (their JSON) and
`guest_routes`. `shares` shows files of the host to the guest, with `host_changes` and
`file_descriptors`, and `sockets` carries sockets of the host to it, `directory_sockets` those in
directories. `containers` and `processes`
run containers, with `stdio`, `oom_reports` and `abandoned`. `looking` shows the network as guest
and QEMU see it, `totals` has numbers for metrics. Callers use `sandbox.client` for all of it.
"""
