"""Numbers for Prometheus: the counters of sandboxes, their NICs, guests and processes.

`collecting` collects all metrics, from `places` on the host, `processes`, and guests (`asking`),
with the platforms' `labels`; `exposition` has the text formats, and `serving` the HTTP server. Each
scrape reads anew, changes nothing, and leaves nothing behind; there is no daemon.
"""
