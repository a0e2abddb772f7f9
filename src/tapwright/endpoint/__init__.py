"""Endpoints: the join of an interface in a network namespace with a NIC of the VM.

`discovery` finds the interfaces of a namespace and says what the guest must set up for them;
there is one module for each way to join: `tcfilter`, `tap`, `vhost_user`.
"""
