"""What a running sandbox can be asked, on the supervisor's side of the control socket.

`server` is the socket. `operations` are the verbs of `kata-network`, with `kata` (their JSON) and
`guest_routes`; `shares` what concerns the files that the guest is shown, with `host_changes` and
`file_descriptors`; `containers` and `processes` what concerns containers, with `stdio`,
`oom_reports` and `abandoned`; `looking` how its network is seen from within. Callers have
`sandbox.client` for all of it.
"""
