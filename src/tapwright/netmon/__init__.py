"""The network monitor: the process that watches a sandbox's network namespace.

`events` waits for changes, `kata` drives a runtime by Kata's contract, `own` notifies the sandbox's
supervisor, and `__main__` is the executable.
"""
