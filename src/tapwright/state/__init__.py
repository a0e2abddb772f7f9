"""A sandbox on disk: a directory.

`record` is its specification and state, with the journal of all that it holds (`entries`);
`ownership` is the right to change it; `registry` finds and lists, by `ids`; `teardown` takes back
all that it holds, and its `control_group`.
"""
