"""A real Kubernetes, on nodes that are namespaces of this machine: scripts/kubernetes runs it.

`build` makes the programs from Debian's source package, `certificates` who they are to each other,
`cluster` the control plane, `node` what runs pods. `machines` are bare ones, which the lines of
docs/kubernetes.md make a cluster; `archive` stands in for the archives that these lines name. The
tests are rows of a table in that page, which `table` writes: each runs with the runtime `runc`,
too, as the comparison.
"""
