"""What Tapwright costs, measured on this host: `scripts/bench` measures everything in one run and
writes docs/performance.md.

A part is a module with `measure`, which returns plain data, and runs alone too: `scripts/bench
--only hotplug`. `place` is where parts work, `report` with `tables` and `plots` what is made of
their data. Variants of a measurement take turns within one run, so that what disturbs the machine
disturbs them all.
"""
