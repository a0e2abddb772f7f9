"""The guest image: a kernel and an initrd, made from Debian packages and our agent.

`packages` gets the packages, `kernel` and `modules` take what is needed out of the kernel's,
`guest/` holds the few files of our own, `archive` writes the initrd, `build` puts them together,
`store` keeps the results.
"""
