"""Where packets of a sandbox go, for people: nothing here changes anything.

`way` has the words (points, edges, the way of a NIC, the picture of a sandbox), `collecting` finds
them on this host and asks the guest, `checking` says what is wrong with a picture, `told` draws it
for a terminal, `drawing` as SVG, `page` as one page for a browser (with `page.css` and `page.js`),
which `live` serves to this machine.
"""
