"""Packets of a running sandbox, seen at each point of their way, as a pcapng file.

What belongs here: where the points are, sockets that listen there, the program for the guest, the
filter language of pcap, the file format, and what brings these together. Nothing here changes a
namespace or the guest, and QEMU knows nothing of it.
"""
