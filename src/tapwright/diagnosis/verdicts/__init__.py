"""The rules by which `judging` says what keeps a packet from arriving. Each one reads a case, and
yields a verdict or none.

`sandboxes` and `names` come first: does the sandbox run, and has the target an address? The others
follow the packet: `guest`, `interfaces`, `bridges`, `routing` (the host as a router) and `services`
(the target's port). `lost` has the rules that know only where the packet was last seen. They use
`reading` (what a case says), `stations` (who saw the packet) and `remedies` (commands).
"""
