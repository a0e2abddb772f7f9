"""Where packets of a sandbox go, for people: nothing here changes anything.

`way` has the words (points, edges, the way of a NIC, the picture of a sandbox). `collecting` finds
them on this host, with `view` (a namespace's tables), `made` (by which CNI plugin) and `outward`
(from an interface to the wire), and asks the guest; `checking` says what is wrong with a picture.
`terminal` draws it as text, `drawing` as SVG, `page` as one page for a browser (with `page.css`
and `page.js`), which `live` serves to this machine, all in the same `words`. `explaining` sends a
packet (by `probes` in the guest), reads `facts` of the host, makes a `case` of them and of the
packet `rules` that dropped it, and `judging` says why it does not arrive.
"""
