"""The process inside the VM that configures its network and runs commands, and the host's end.

`protocol` defines the frames, `requests` makes each request, `inherited` that for what a namespace
has from its host, `client` is the supervisor's end (asyncio), with `patience` for the guest;
`connections` go on in the guest; `guest` is the agent itself.

`protocol` and `guest` are packed into the guest: they use the standard library only, and little of
it.
"""
