"""The tests that try to break sandboxes, each within bounds: short in the suite, whole by
scripts/torture, which sets the variables of `bound`."""
