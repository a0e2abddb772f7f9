"""A sandbox on disk: a directory.

`record` is its specification and state, with the journal of all that it holds (`entries`).
`ownership` is the right to change it. `registry` finds and lists sandboxes, by `ids`. `teardown`
undoes the journal, including the sandbox's `control_group`. `plugin_runs` counts the runs of CNI
plugins.
"""
