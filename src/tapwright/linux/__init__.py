"""Verbs on kernel objects: netns, links, addresses, routes, neighbours, tc, TAPs, macvtaps.

Nothing here knows what a sandbox is. All but `libc`, `macvtap`, `netns`, `tc` and `tuntap`
is also packed into the guest: it imports the standard library only, and little of it.
"""
