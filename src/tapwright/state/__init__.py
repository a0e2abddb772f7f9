"""A sandbox on disk: a directory.

`record` is what it is, with the journal of all that it holds (`entries`); `ownership` who may do
what to it; `registry` finds and lists, by `ids`; `teardown` takes back all that it holds, and its
`control_group`.
"""
