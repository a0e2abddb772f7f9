"""A sandbox on disk: a directory.

`record` is its specification and state, with the journal of all that it holds (`entries`; `joins`
are those of its NICs).
`ownership` is the right to change it, and `supervisors` finds the process that supervises it.
`registry` finds and lists sandboxes, by `ids`. `teardown` undoes the journal, including the
sandbox's `control_group`, after `rebinding` of a namespace whose name is gone. `plugin_runs` counts
the runs of CNI plugins.
"""
