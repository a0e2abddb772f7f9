"""The agent: what runs inside the VM.

`__main__` is its event loop, `streams` the commands it runs, `network` what it does to the
guest's interfaces, `system` clock, hostname and power. Single-threaded; waits for events only.
"""
