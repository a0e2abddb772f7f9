"""Endpoints: the join of an interface in a network namespace with a NIC of the VM.

`discovery` finds the interfaces of a namespace and says what the guest must set up for them.
`kinds` says which endpoint an interface becomes. There is one module for each:

- by the internetworking model, for what carries Ethernet frames: `tcfilter`, `macvtap`, `unjoined`
- for what can be given to a VM as it is: `tap`, `macvtap`, `vhost_user`

An endpoint is plain data, all of it: what is in the journal is enough to take it away again.
"""
