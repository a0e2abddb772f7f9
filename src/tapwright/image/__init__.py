"""The guest image: a kernel, an initrd and a disk, from a release's packages and our agent.

`packages` finds and gets the packages, `release` those of another release than the host's;
`kernel` takes the needed files out of the kernel's, `sources` lists our own (with `guest/`);
`elf` takes a needless library from a program, `archive` writes the initrd, `build` puts all
together, `store` keeps the results, `transfer` carries one to another host.
"""
