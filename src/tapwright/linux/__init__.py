"""Verbs on kernel objects: netns, links, addresses, routes, neighbours, tc, TAP devices.

Nothing here knows what a sandbox is. All but `libc`, `netns`, `tc` and `tuntap` is also packed into
the guest: it imports the standard library only, and little of it.
"""
