"""Shows people where packets of a sandbox go, and why one does not arrive. No module changes
anything.

`way` defines the data: points, edges, the way of a NIC, the picture of a sandbox. `collecting`
fills it on this host and asks the guest, with `view` (a namespace's tables), `plugins` (which made
what) and `outward` (from an interface to the wire). `checking` says what is wrong with a picture.
`terminal` draws it as text, `drawing` as SVG, `page` as one page for a browser (with `page.css` and
`page.js`), which `live` serves to this machine; all use the same `words`.

`explaining` sends a packet. It uses `probes` in the guest, `vetting` for their answers, `facts` of
the host, and the packet `rules` that dropped the packet. `case` holds all that, and `judging` says
why the packet does not arrive, by the rules in `verdicts`.
"""
