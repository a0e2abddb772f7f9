"""Finds the packet rule that dropped a packet, by the trace of nf_tables or by the counters of
iptables-legacy. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from tapwright.diagnosis.case import Case, Drop
from tapwright.linux.nftrace import DROP, Step

_LINE = re.compile(r"\[(\d+):\d+\] -A (\S+) (.*)")
_POLICY = re.compile(r":(\S+) (\S+) \[(\d+):\d+\]")
_ENDS = ("-j DROP", "-j REJECT")

Json = dict[str, Any]


def dropped(case: Case) -> Iterator[Drop]:
    """Yield the drops in the guest, whose rules are known from the trace alone, and on the host."""
    yield from _traced(case.guest_steps, [], guest=True)
    yield from _traced(case.steps, case.host.nft, guest=False)
    yield from _counted(case)


def _traced(steps: list[Step], ruleset: list[Json], guest: bool) -> Iterator[Drop]:
    seen, hooks = set(), dict[int, str]()
    for step in steps:
        if step.ours:
            hooks[step.packet] = step.chain.partition("-")[0]
        if step.ours or step.verdict != DROP or step.kind not in ("rule", "policy"):
            continue
        key = step.table, step.chain, step.handle
        if key in seen:
            continue
        seen.add(key)
        handle = step.handle if step.kind == "rule" else 0
        rule = _found(ruleset, "rule", table=step.table, chain=step.chain, handle=handle)
        chain = _found(ruleset, "chain", table=step.table, name=step.chain)
        family = str((rule or chain).get("family", step.family))
        text = _written(rule.get("expr", []))
        hook = str(chain.get("hook", hooks.get(step.packet, "")))
        yield Drop(family, step.table, step.chain, handle, hook, text, guest=guest)


def _found(ruleset: list[Json], kind: str, **wanted: Any) -> Json:
    for entry in ruleset:
        found = entry.get(kind) if isinstance(entry, dict) else None
        if isinstance(found, dict) and all(found.get(k) == v for k, v in wanted.items()):
            return found
    return {}


def _written(expressions: Any) -> str:
    """Write a rule nearly as nft does."""
    words = []
    for one in expressions if isinstance(expressions, list) else ():
        if not isinstance(one, dict):
            continue
        for kind, value in one.items():
            if kind == "match" and isinstance(value, dict):
                operation = "" if value.get("op") == "==" else f"{value.get('op')} "
                words.append(f"{_side(value.get('left'))} {operation}{_side(value.get('right'))}")
            elif kind in ("drop", "reject"):
                words.append(kind)
            elif kind == "xt":
                words.append("(match of iptables)")
    return " ".join(words)


def _side(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    for kind, inner in value.items():
        if kind == "payload" and isinstance(inner, dict):
            return f"{inner.get('protocol', '')} {inner.get('field', '')}".strip()
        if kind == "prefix" and isinstance(inner, dict):
            return f"{inner.get('addr')}/{inner.get('len')}"
        if kind in ("meta", "ct") and isinstance(inner, dict):
            return f"{'' if kind == 'meta' else 'ct '}{inner.get('key', '')}"
        if kind == "set" and isinstance(inner, list):
            return "{ " + ", ".join(map(_side, inner)) + " }"
    return str(value)


def _counted(case: Case) -> Iterator[Drop]:
    """Yield the dropping rules of iptables-legacy whose counters grew during the probes."""
    before, after = case.host.legacy_before, case.host.legacy_after
    family = "ip" if case.version == 4 else "ip6"
    old = dict(_counters(before))
    for key, count in _counters(after):
        table, chain, number, text = key
        if count > old.get(key, 0):
            yield Drop(family, table, chain, number, text=text, is_legacy=True)


def _counters(saved: str) -> Iterator[tuple[tuple[str, str, int, str], int]]:
    """Yield ((table, chain, number of the rule or 0 for the policy, rule), packets) of each rule or
    policy that drops packets."""
    table, numbers = "", dict[str, int]()
    for line in saved.splitlines():
        if line.startswith("*"):
            table, numbers = line[1:], {}
        elif policy := _POLICY.match(line):
            if policy[2] == "DROP":
                yield (table, policy[1], 0, ""), int(policy[3])
        elif rule := _LINE.match(line):
            numbers[rule[2]] = numbers.get(rule[2], 0) + 1
            if any(end in rule[3] for end in _ENDS):
                yield (table, rule[2], numbers[rule[2]], rule[3]), int(rule[1])
