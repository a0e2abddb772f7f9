"""Numbers for Prometheus: what sandboxes, their NICs, guests and processes have counted.

What belongs here: which numbers there are, where they are read, and the text formats. Each scrape
reads anew, changes nothing, and leaves nothing behind; there is no daemon.
"""
