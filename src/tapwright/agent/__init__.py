"""The process inside the VM that configures its network and runs commands, and how to talk to it.

`protocol` is what travels, `client` the supervisor's end (asyncio), `guest/` the agent itself.
`protocol` and `guest/` are packed into the guest: standard library only, and little of it.
"""
