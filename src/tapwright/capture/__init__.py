"""Captures packets of a running sandbox at each point of their way, as a pcapng file.

`points` says where the points are, `listening` has the sockets that listen there, `in_guest` runs
that program in the guest, `filters` has pcap's filter language, `pcapng` the file format, and
`capturing` brings these together. Nothing here changes a namespace or the guest, and QEMU does not
take part.
"""
