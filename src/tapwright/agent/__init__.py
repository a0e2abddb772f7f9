"""The process inside the VM that configures its network and runs commands, and how to talk to it.

`protocol` is what travels, `requests` makes each request, `client` is the supervisor's end
(asyncio), with `patience` for the guest; `guest/` is the agent itself.
`protocol` and `guest/` are packed into the guest: standard library only, and little of it.
"""
