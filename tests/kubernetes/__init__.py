"""A real Kubernetes, on nodes that are namespaces of this machine: scripts/kubernetes runs it.

`build` makes the programs from Debian's source package, `certificates` who they are to each other,
`cluster` the control plane, `node` what runs pods. The tests are rows of a table in
docs/kubernetes.md, which `table` writes: each runs with the runtime `runc`, too, as the comparison.
"""
