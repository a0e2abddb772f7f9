"""Verbs on kernel objects: netns, links, addresses, routes, neighbours, tc, TAPs, macvtaps.

Nothing here knows what a sandbox is. What is also packed into the guest (`image/build.py`) imports
the standard library only, and little of it.
"""
