"""The guest image: a kernel and an initrd, made from a release's packages and our agent.

`packages` finds and gets the packages, `release` those of another release than the host's,
`kernel` takes what is needed out of the kernel's, `guest/` holds the few files of our own,
`archive` writes the initrd, `build` puts them together, `store` keeps the results, `transfer`
carries one to another host.
"""
