"""Verbs on kernel objects: netns, links, addresses, routes, neighbours, tc, TAP devices.

Nothing here knows what a sandbox is. `netlink`, `links`, `addresses`, `routes`, `neighbours` and
`ethtool` are also packed into the guest: they import the standard library only, and little of it.
"""
