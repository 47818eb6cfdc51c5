"""Making and checking plans on the server's side: ``plan new``, and what must hold before one is proposed."""

import datetime as dt
from typing import Any, Final

import tomlkit
from nexus_common import wire
from nexus_common.config import nearest, parse_table, validate
from nexus_common.errors import NexusError
from nexus_common.plan import Origin, Plan
from nexus_common.recipe import Recipe
from nexus_common.versions import vector_hash

from nexus_server.admin_api import NewPlan, PlanDraft
from nexus_server.approvals import first_version, unheard_origin
from nexus_server.records import Run
from nexus_server.registry import Registry

FEW_SITES: Final = 5
HEAD: Final = (
    "A consortium plan. Read it through and change it, then: nexus-server plan propose FILE",
    "Once it is proposed, every change makes another plan, with other words to approve.",
)
BLANK: Final = "to be filled in"


def draft(registry: Registry, request: NewPlan) -> PlanDraft:
    """The plan that a request describes, as a file to complete; NexusError where it cannot be one."""
    before = _run(registry, request.origin) if request.origin else None
    fields = before.plan.model_dump(mode="json", exclude={"name", "origin"}) if before else {}
    for name, value in parse_table(request.recipe, "--recipe").items():
        fields[name] = _merged(fields.get(name), value)
    year = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=365)
    fields |= {"name": request.name, "sites": _roster(registry, request, before)}
    given: dict[str, object] = {"purpose": request.purpose, "hours_utc": request.hours, "start": request.start}
    given |= {"rounds": request.rounds, "min_cohort": request.min_cohort, "base_model": request.base_model}
    given |= {"end_date": request.end_date or (None if before else str(year))}
    fields |= {name: value for name, value in given.items() if value}
    if request.clip_norm:
        fields["local"] = _merged(fields.get("local"), {"clip_norm": request.clip_norm})
    if request.range:
        fields["aggregation"] = _merged(fields.get("aggregation"), {"range": request.range})
    if before:
        fields["origin"] = _origin(registry, before, request.version).model_dump(exclude_none=True)
        fields["adapter"] = _merged(fields["adapter"], _grown(registry, before, request.version))
    return _checked_draft({key: value for key, value in fields.items() if value is not None})


def _merged(old: Any, new: Any) -> Any:
    """A table's new settings among its old ones; anything else takes the old one's place."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | new
    return old if isinstance(new, dict) and old is not None else new  # what is no table is refused by its name later


def _checked_draft(fields: dict[str, Any]) -> PlanDraft:
    """What only people know may be blank in a draft: it is filled in before the plan is proposed."""
    blank = [] if fields.get("purpose") else ["purpose"]
    blank += [
        f"{key} of {member['name']}"
        for member in fields["sites"]
        for key in ("controller", "contact")
        if not member[key]
    ]
    members = [{key: value or BLANK for key, value in member.items()} for member in fields["sites"]]
    whole = fields | {"purpose": fields.get("purpose") or BLANK, "sites": members}
    plan = validate(Plan, whole, "nexus-server plan new")
    text = plan_toml(plan).replace(f'"{BLANK}"', '""')
    notes = [f"fill in: {', '.join(blank)}"] if blank else []
    return PlanDraft(
        text=text,
        notes=[*notes, *advice(plan)],
        clip_norm=plan.local.clip_norm,
        range=plan.aggregation.range,
    )


def _run(registry: Registry, name: str) -> Run:
    run = registry.run(name)
    if run is None:
        known = [one.plan.name for one in registry.all_runs()]
        raise NexusError(f"no run {name!r} to follow{nearest(name, known)}; runs: {', '.join(known) or 'none'}")
    return run


def _roster(registry: Registry, request: NewPlan, before: Run | None) -> list[dict[str, str]]:
    """Members by name, each with its enrolled key."""
    enrolled = {row.name: row for row in registry.sites()}
    if before:
        old = {member.name: member.model_dump() for member in before.plan.sites}
        wanted = (set(old) | set(request.add)) - set(request.without)
        strangers = set(request.without) - set(old)
    else:
        old, wanted, strangers = {}, set(request.add) or set(enrolled), set(request.without) - set(enrolled)
        wanted -= set(request.without)
    if missing := sorted((wanted - set(enrolled)) | strangers):
        hint = nearest(missing[0], [*enrolled, *old])
        raise NexusError(f"not enrolled: {', '.join(missing)}{hint}; enrolled are {', '.join(enrolled) or 'none'}")
    return [
        {"controller": enrolled[name].controller, "contact": enrolled[name].contact}
        | old.get(name, {})
        | {"name": name, "key": enrolled[name].identity.hex()}
        for name in sorted(wanted)
    ]


def _origin(registry: Registry, before: Run, version: int | None) -> Origin:
    name = before.plan.hash.hex()
    if version is None:
        return Origin(plan=name)
    if version not in {one.number for one in registry.versions(before.plan.name)}:
        raise NexusError(f"run {before.plan.name} has versions 0 to {before.round}, not {version}")
    _, vector = registry.adapter(before, version)
    return Origin(plan=name, version=version, vector=vector_hash(wire.pack(vector)))


def _grown(registry: Registry, before: Run, version: int | None) -> dict[str, object]:
    """The ``[adapter]`` settings of the version that a plan begins at: the run before may have grown it."""
    number = version if version is not None else registry.in_use(before.plan.name)
    if number is None:
        return {}
    stage, _ = registry.adapter(before, number)
    layout = before.plan.stages[stage].arms[0]
    salience = {"salience": layout.salience is not None, "salience_dendrites": layout.salience or 0}
    return {**salience, "projection_dendrites": layout.projection}


def plan_toml(plan: Plan) -> str:
    """A plan as the file that people edit before it is proposed: what people read first, then the tables."""
    fields = plan.model_dump(mode="json", exclude_none=True)
    for late in Recipe.model_fields:
        fields[late] = fields.pop(late)
    document = tomlkit.document()
    for line in HEAD:
        document.add(tomlkit.comment(line))
    for name, value in sorted(fields.items(), key=lambda field: isinstance(field[1], dict | list)):
        if isinstance(value, dict | list):
            document.add(tomlkit.nl())
        document.add(name, tomlkit.item(value))
    return tomlkit.dumps(document)


def check_proposal(registry: Registry, plan: Plan, where: str) -> None:
    """NexusError unless every site is enrolled with the plan's key, and what it follows is here and fits."""
    keys = {row.name: row.identity.hex() for row in registry.sites()}
    if unknown := [name for name in plan.names if name not in keys]:
        raise NexusError(
            f"{where}: not enrolled: {', '.join(unknown)}{nearest(unknown[0], keys)}; enrolled are "
            f"{', '.join(keys) or 'none'} (`nexus-server invite SITE`)"
        )
    if changed := [member.name for member in plan.sites if keys[member.name] != member.key]:
        raise NexusError(
            f"{where}: the key of {', '.join(changed)} is not the one enrolled; `plan new` writes the right ones"
        )
    if plan.end_date < dt.datetime.now(dt.UTC).date():
        raise NexusError(f"{where}: the plan's end_date {plan.end_date} has passed")
    run = registry.run(plan.name)
    if run is not None and run.plan.hash != plan.hash:
        raise NexusError(
            f"{where}: run {plan.name} exists with other settings ({differences(run.plan, plan)}); give the new "
            "one another name"
        )
    if run is not None or plan.origin is None or unheard_origin(registry, plan) is not None:
        return  # the last: where it begins is not known yet, and is checked once it is
    first_version(registry, plan)  # raises where it cannot begin there


def differences(before: Plan, plan: Plan) -> str:
    """Which top-level settings differ."""
    old, new = before.model_dump(), plan.model_dump()
    return ", ".join(key for key in new if new[key] != old[key])


def advice(plan: Plan) -> list[str]:
    """What the coordinator should know of a plan before people approve it."""
    count, spare = len(plan.sites), len(plan.sites) - plan.quorum
    found = [f"each round needs {plan.quorum} of {count} sites, so {spare or 'none'} can be spared"]
    if count < FEW_SITES:
        found.append(
            "five sites or more are advised: then one can be away, and no two together can compute a third's update"
        )
    if plan.privacy is None:
        found.append("epsilon: none (records are not protected); each site must accept that in its policy.toml")
    return found
