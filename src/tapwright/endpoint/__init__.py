"""Endpoints: the join of an interface in a network namespace with a NIC of the VM.

`discovery` finds the interfaces of a namespace and says what the guest must set up for them;
`carried` says which routes and rules. `kinds` says which endpoint an interface becomes. There is
one module for each:

- by the internetworking model, for what carries Ethernet frames: `tcfilter`, `macvtap`, `bare_tap`
  (`companion` is what these have in common, `heard` the frames that the host sees, too)
- for what can be given to a VM as it is: `tap`, `macvtap`, `vhost_user`
- `physical` is a refusal

`host_tap` puts TAPs into the host's bridges, `host_device` moves interfaces from the host, and
`limits` bounds rates.

An endpoint is plain data, all of it: what is in the journal is enough to take it away again.
"""
