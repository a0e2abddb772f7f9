"""The packet rules of the sandbox's network namespace, in its guest: nf_tables, the tables of
iptables-legacy, ipsets, and the services of IPVS.

Plugins and platforms set rules there for the programs of the container (a service mesh's
redirections, a firewall). The host would apply them to no frame of the guest, because these frames
do not pass the namespace's stack.

The supervisor sends each table as a whole, and again whenever it changes. It leaves the guest's own
tables alone, and keeps what programs of the guest have added to tables of nf_tables.

nf_tables has a generation number, so a look without changes is one short request. The other kinds
have none: the supervisor reads them every `LOOK_AGAIN_SECONDS` where they exist.

Plugins rely on their rules. So a sandbox whose guest refuses rules does not start (`required`),
unless it may start without them (`best-effort`). A running guest that refuses new rules keeps its
old ones.

`carried_rules` does the work; it is loaded only for a namespace that has rules.

Runs in the supervisor; the caller makes one call at a time.
"""

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from tapwright.agent.client import AgentClient
from tapwright.errors import AgentRefusedError, NetworkError
from tapwright.linux import netns, packet_rules
from tapwright.linux.packet_rules import Glance
from tapwright.nics.attempts import Attempts

if TYPE_CHECKING:
    from tapwright.nics.carried_rules import CarriedRules
    from tapwright.nics.interfaces import Followers

REQUIRED, BEST_EFFORT, NONE = "required", "best-effort", "none"

LOOK_AGAIN_SECONDS = 10.0
_IDLE_SHARE = 9.0  # rules that took a second to read are not read again for nine

_log = logging.getLogger(__name__)


class Rulesets:
    """The packet rules of the namespace at `path`; `mode` says which of them the guest gets."""

    def __init__(self, path: str, agent: AgentClient, mode: str = REQUIRED) -> None:
        self._path = path
        self._agent = agent
        self._mode = mode if path and not netns.is_own(path) else NONE
        self._carried: CarriedRules | None = None
        self._seen: object = None
        self._not_before = 0.0
        self._logged = ""

    def doubt(self) -> None:
        """A NIC has gone from the guest, and what was bound to it with it."""
        self._seen = None
        if self._carried:
            self._carried.doubt()

    async def load(self, nics: "Followers") -> None:
        """Give the guest the rules, when it has its NICs.

        Raises NetworkError, AgentError; AgentRefusedError where rules are required that the guest
        does not take.
        """
        strictly = self._mode == REQUIRED
        if glance := self._glance(strictly):
            await self._carry(nics, glance, strictly)

    async def follow(self, nics: "Followers", attempts: Attempts, strictly: bool) -> float | None:
        """Give the guest what has changed; return the seconds after which to look again, None to
        wait for a notification. What fails is an attempt; with `strictly` it is an error where
        rules are required, as it is for `load`.

        Raises NetworkError, AgentError, AgentRefusedError.
        """
        strictly = strictly and self._mode == REQUIRED
        if not strictly and (wait := self._not_before - time.monotonic()) > 0:
            return wait
        glance = self._glance(strictly)
        if not glance:
            return None
        if strictly:
            await self._carry(nics, glance, strictly)
        else:
            carry = partial(self._carry, nics, glance, self._mode == REQUIRED)
            await attempts.make("rulesets", glance, carry, "its packet rules have changed")
        return LOOK_AGAIN_SECONDS if glance.is_silent else None

    def _glance(self, strictly: bool) -> Glance | None:
        """None where nothing is carried, or seen. Raises NetworkError, if `strictly`."""
        if self._mode == NONE:
            return None
        try:
            with netns.entered(self._path):
                return packet_rules.glance()
        except OSError as error:
            reason = (
                f"the packet rules of the network namespace can't be looked at: {error.args[-1]}"
            )
            if strictly:
                raise NetworkError(reason) from None
            if reason != self._logged:
                _log.warning("%s", reason)
            self._logged = reason
            return None

    async def _carry(self, nics: "Followers", glance: Glance, strictly: bool) -> None:
        seen = glance, nics
        if not (self._carried or glance.has_tables or glance.is_silent):
            return
        if seen == self._seen and not glance.is_silent:
            return
        if self._carried is None:
            from tapwright.nics.carried_rules import CarriedRules

            self._carried = CarriedRules(self._path, self._agent)
        refused = await self._carried.change(nics, glance)
        self._not_before = time.monotonic() + self._carried.reading_seconds * _IDLE_SHARE
        self._seen = seen
        if not refused:
            return
        reason = refused[0] + (f" (one of {len(refused)})" if len(refused) > 1 else "")
        if strictly:
            self._seen = None
            raise AgentRefusedError(
                f"the network namespace has packet rules that the guest can't have: {reason}; take "
                "them away, give the guest a kernel that has what they need (tapwright image "
                'build), or let it go without: [runtime] netns_rulesets = "best-effort"'
            )
        _log.warning("the guest goes without packet rules of the namespace: %s", reason)
