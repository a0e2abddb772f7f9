"""A sandbox on disk: a directory.

`record` is what it is and holds, with the journal; `ownership` who may do what to it; `registry`
finds and lists; `teardown` takes back all that it holds, and its `control_group`.
"""
