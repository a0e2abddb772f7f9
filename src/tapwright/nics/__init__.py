"""The guest's network, as long as a sandbox runs. All of it runs in the supervisor.

`interfaces` are the NICs, each from a `request` or an interface of the namespace. `following` keeps
them equal to the namespace, with `taken_over` (what a request for a NIC has), `guest_table`
(routes, rules, next hops, neighbours), `guest_settings` (/proc/sys/net), `rulesets` (packet rules,
with `carried_rules`) and `attempts` (what failed); where no monitor asks for that, `carriers` alone
are followed. `promised` are the interfaces that CNI results name. NICs also come from `socket_nics`
and `net_devices`. `resolvers` and `forwarding` are name servers and ports of the loopback
interface.
"""
