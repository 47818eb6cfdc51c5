"""The page of a plan: Markdown for the terminal, and one HTML file that an officer prints on A4 and signs.

Whatever the plan's author wrote freely (purpose, controller, contact) is hostile until proven otherwise: it passes
``escape`` and never begins a line.  The HTML has no script and nothing from outside, and its renderer knows no HTML,
link or image, so the worst that text in a plan can be is text.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from markdown_it import MarkdownIt
from pydantic import BaseModel

from nexus_common import plan_text as text
from nexus_common.page import document
from nexus_common.plan import Member, Origin, Plan
from nexus_common.secagg.plan import threshold

SHORT: Final = 16  # hex digits of a hash or key
COLUMNS: Final = 110
SHOWN_PLANS: Final = 4
ADVISED_SITES: Final = 5
_MARKUP: Final = re.compile(r"[\\`*_\[\]<>|&~#]")
_HEX: Final = re.compile("[0-9a-f]{64}")
_TAG: Final = re.compile("<[^>]*>")
_TWO_PAGES: Final = 520_000  # characters x (size in points)^2 that fill two A4 pages, measured, with some room left
_RULES: Final = ("heading", "table", "list", "blockquote", "escape", "emphasis", "backticks")
_SIGNED: Final = ("site", "name and office", "date", "reference", "signature")


def as_markdown(
    plan: Plan, words: Sequence[str] | None, before: Plan | None = None, epsilon: float | None = None
) -> str:
    """The page; ``before`` is the plan approved until now, ``epsilon`` what this site computed for the plan's noise."""
    facts, spare = _facts(plan), len(plan.sites) - plan.quorum
    spent = "computed at each site, not here" if epsilon is None else f"{epsilon:.2f}"
    numbered = "\n".join(f"{number}. {escape(word)}" for number, word in enumerate(words or (), 1))
    return text.PAGE.format(
        purpose=escape(plan.purpose),
        changes=_changes(plan, before) if before else "",
        words=text.WORDS.format(lines=numbered) if words else "",
        members=_table([text.MEMBERS, *map(_member, plan.sites)]),
        observers=_table([[cell.format_map(facts) for cell in row] for row in text.OBSERVERS]),
        privacy=text.NOISE.format(epsilon=spent, **facts, **dict(plan.privacy)) if plan.privacy else text.NO_NOISE,
        spare=text.SPARE.format(spare=_count(spare, "site")) if spare else text.NOBODY,
        advice=text.ADVICE if len(plan.sites) < ADVISED_SITES else "",
        settings=_table([[cell.format_map(facts) for cell in row] for row in text.SETTINGS]),
        rest=textwrap.fill(text.REST + ", ".join(_rest(plan)), COLUMNS, break_on_hyphens=False),
        begins=_begins(plan.origin) if plan.origin else "",
        near_equal=text.NEAR_EQUAL if spare else "",
        **facts,
    )


def as_html(markdown: str, title: str) -> str:
    """One self-contained document of what ``as_markdown`` wrote, with lines to sign on."""
    body = MarkdownIt("zero").enable(list(_RULES)).render(markdown)
    points = min(max((_TWO_PAGES / len(_TAG.sub("", body))) ** 0.5, 6), 9)
    lines = "".join(f"<p>{line}</p>\n" for line in _SIGNED)
    return document(title, f"<main>\n{body}</main>\n<footer>\n{lines}</footer>\n", STYLE, points)


def escape(line: str) -> str:
    """One line of foreign text that Markdown shows as it is; not for the beginning of a line."""
    return _MARKUP.sub(r"\\\g<0>", line)


def _facts(plan: Plan) -> dict[str, Any]:
    """What the sentences name; nothing of it is free text."""
    dim, width = plan.adapter.layout.dim, plan.aggregation.mod_bits // 8
    n, helpers = len(plan.sites), (len(plan.sites) - 1) // 3  # helpers: ceil(n/3) - 1
    protocol, stages = plan.protocol_plans, plan.stages
    derived = ", ".join(f"`{one.hash.hex()[:SHORT]}`" for one in protocol[:SHOWN_PLANS])
    derived += f" and {len(protocol) - SHOWN_PLANS} more" if len(protocol) > SHOWN_PLANS else ""
    return {
        **{"name": plan.name, "hash": plan.hash.hex()[:SHORT], "end": plan.end_date, "hours": plan.hours_utc},
        **{"dim": dim, "width": width, "masked": protocol[0].packed_bytes / 1e6},
        "trial": _trial(plan),
        "growth": _growth(plan) if len(stages) > 1 else text.NO_GROWTH,
        "figures": ", ".join(text.FIGURES[figure] for figure in plan.aggregation.figures) or "nothing else",
        **{"n": n, "t": threshold(n), "min_cohort": plan.min_cohort, "quorum": plan.quorum},
        **{"rounds": plan.rounds, "steps": plan.local.steps, "clip": plan.local.clip_norm},
        **{"updates": plan.most_inputs, "base": plan.base_model[:SHORT]},
        "derived": f"{_count(len(protocol), 'derived protocol plan')}: {derived}",
        "others": f"{plan.quorum - 1}" + (" or more" if plan.quorum < n else ""),
        "helpers": f"more than {_count(helpers, 'site')} helped" if helpers else "a site helped",
        "given": "within the epsilon below" if plan.privacy else "with it",
        "places": plan.adapter.layout,
        "search": text.SEARCH if plan.adapter.salience else "",
        "starts": text.STARTS[plan.start].format(quorum=plan.quorum),
    }


def _trial(plan: Plan) -> str:
    if len(plan.stages) == 1:
        return ""
    arms = max(len(stage.arms) for stage in plan.stages)
    return text.TRIAL.format(arms=arms, most=max(one.packed_bytes for one in plan.protocol_plans) / 1e6)


def _growth(plan: Plan) -> str:
    growth = plan.growth
    places = " or ".join(growth.candidates)
    return text.GROWTH.format(most=_count(growth.max_dendrites, "dendrite"), places=places, rounds=growth.trial_rounds)


def _member(member: Member) -> tuple[str, ...]:
    return member.name, escape(member.controller), escape(member.contact), f"`{member.key[:SHORT]}`"


def _begins(origin: Origin) -> str:
    version = "the newest version" if origin.version is None else f"version {origin.version}"
    checked = text.CHECKED.format(vector=origin.vector[:SHORT]) if origin.vector else text.UNCHECKED
    return text.BEGINS.format(version=version, plan=origin.plan[:SHORT], checked=checked)


def _changes(plan: Plan, before: Plan) -> str:
    added, removed = set(plan.names) - set(before.names), set(before.names) - set(plan.names)
    old, new = dict(_entries(before)), dict(_entries(plan))
    whole = tuple(f" of {name}" for name in added | removed)
    changed = [key for key in old | new if old.get(key) != new.get(key) and not key.endswith(whole)]
    lines = [f"- site added: {name}" for name in sorted(added)]
    lines += [f"- site removed: {name}" for name in sorted(removed)]
    lines += [f"- {key}: {_value(new.get(key))}, before {_value(old.get(key))}" for key in changed]
    remarks = (
        (added, text.NEWCOMER),
        (removed, text.LEAVER),
        (any(key.startswith("key of ") for key in changed), text.NEW_KEY),
        (not added | removed and all(key.startswith(("name", "origin.")) for key in changed), text.SAME),
    )
    return text.CHANGES.format(
        lines="\n".join(lines),
        remarks="".join(f"{remark}\n" for applies, remark in remarks if applies),
        name=before.name,
        hash=before.hash.hex()[:SHORT],
    )


def _entries(plan: Plan) -> Iterator[tuple[str, object]]:
    """Everything that a plan says, by the names that people read: ``key of hospital-a``, ``local.steps``."""
    for member in plan.sites:
        yield from ((f"{field} of {member.name}", value) for field, value in member if field != "name")
    yield from _settings(plan)


def _settings(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings:
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{prefix}{name}.")
        elif value is not None and name != "sites":
            yield prefix + name, value


def _rest(plan: Plan) -> Iterator[str]:
    return (f"{key} {_value(value)}" for key, value in _settings(plan) if not key.startswith(text.TOLD))


def _value(value: object) -> str:
    shown = value if isinstance(value, str) else str(value).lower()
    return f"`{shown[:SHORT]}`" if _HEX.fullmatch(shown) else escape(shown)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head.  Aligned for the terminal up to the last column, which may be long."""
    widths = [*(max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]), 0]
    head, *rows = (" | ".join(map(str.ljust, line, widths)) for line in lines)
    rule = " | ".join("-" * max(width, 3) for width in widths)
    return "\n".join(f"| {line} |" for line in (head, rule, *rows))


STYLE: Final = """th:first-child { min-width: 7em }
th:nth-child(2) { min-width: 12em }
th:last-child { min-width: 10.5em }
ol { list-style: none; margin: .6em 0; padding: 0; counter-reset: word; display: grid; gap: .4em;
  grid-template-columns: repeat(4, 1fr); break-inside: avoid }
ol li { counter-increment: word; margin: 0; padding: .35em .6em; background: var(--tint); font-size: 1.3em;
  font-weight: bold }
ol li::before { content: counter(word); display: inline-block; width: 1.7em; color: var(--soft); font-size: .7em;
  font-weight: normal }
footer { display: grid; grid-template-columns: 1fr 2fr 1fr; gap: 0 1.5em; break-inside: avoid; font-size: .85em }
footer p { margin: 3em 0 0; padding-top: .2em; border-top: 1px solid var(--ink); color: var(--soft) }
footer p:last-child { grid-column: 2 / 4 }
@media screen and (max-width: 40rem) {
  th:not(:first-child) { min-width: 0 }
  ol { grid-template-columns: repeat(2, 1fr) }
  footer { display: block }
}
@media print {
  ol { grid-template-columns: repeat(6, 1fr) }
  ol li { padding: .35em .4em }
  h1 + p + h2 + ul { columns: 2 }
  main > :last-child { break-after: avoid }
}
"""
