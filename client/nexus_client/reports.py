"""What a site's commands show of its text and its models: preview, evaluation, training alone.  It all stays here."""

from collections.abc import Callable
from pathlib import Path

from nexus_common.disk import write_durably
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import Recipe, read_recipe
from nexus_common.versions import StoredAdapter

from nexus_client.agent_api import EvaluateReport, PreviewReport
from nexus_client.alone import default_recipe, train_alone
from nexus_client.judge import judge
from nexus_client.rows import Pair, Row, Scored, Utterance
from nexus_client.site import SiteHome
from nexus_client.split import hold_out_warnings, side
from nexus_client.workspace import Workspace

SHOWN_CHARACTERS = 200


def workspace_of(place: SiteHome) -> Workspace:
    """A workspace of this process, for commands that run without the agent."""
    return Workspace(place, place.settings())


def preview(workspace: Workspace, samples: int) -> PreviewReport:
    """What would be trained on, with a few training rows, evenly spread over the files' order."""
    rows, material = workspace.rows, workspace.material
    training = [row for row in rows.every if side(row.group, material.share) == "train"]
    step = max(1, len(training) // max(1, samples))
    return PreviewReport(
        site=workspace.place.site,
        files=rows.counts,
        training=material.rows.train,
        choose=material.rows.choose,
        judge=material.rows.judge,
        left_out=len(rows.problems),
        samples=[_shown(row) for row in training[::step][:samples]],
    )


def _shown(row: Row) -> dict[str, str]:
    match row:
        case Pair():
            texts = {"query": row.query, "passage": row.passage} | ({"negative": row.negative} if row.negative else {})
        case Scored():
            texts = {"a": row.a, "b": row.b, "score": f"{row.score:.3g}"}
        case Utterance():
            texts = {"text": row.text, "label": row.label}
    return {
        name: text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…" for name, text in texts.items()
    }


def evaluate(workspace: Workspace) -> EvaluateReport:
    """Keyword search, base, alone and federated on the part of the hold-out that is only there to judge by."""
    federated = StoredAdapter.read(workspace.place.federated_file)
    adapters: dict[str, tuple[Layout, Vector]] = {}
    warnings = hold_out_warnings(workspace.material)
    if workspace.material.train:
        alone = train_alone(workspace, federated.plan if federated else default_recipe(workspace))
        adapters["alone"] = (alone.layout, alone.vector)
    if federated and federated.plan.base_model == workspace.base_hash:
        adapters["federated"] = (federated.layout, federated.vector)
    elif federated:
        warnings.append(
            f"version {federated.number} of run {federated.plan.name} belongs to another base model than base_model in "
            "site.toml, so it is not shown"
        )
    lines, examples = judge(workspace, adapters)
    found = EvaluateReport(
        site=workspace.place.site,
        rows=workspace.rows.count,
        run=federated.plan.name if federated else None,
        version=federated.number if federated else None,
        lines=lines,
        examples=examples,
        warnings=warnings,
    )
    kept = found.model_copy(update={"examples": []})  # for the site's report, in which no text stands
    write_durably(workspace.place.evaluation_file, kept.model_dump_json().encode())
    return found


def train_local(workspace: Workspace, plan: Path | None, on_round: Callable[[int, int], None]) -> dict[str, object]:
    """Train on this site alone; the recipe is that of a plan, of the run in use, or the shipped one."""
    federated = StoredAdapter.read(workspace.place.federated_file)
    recipe: Recipe = read_recipe(plan) if plan else federated.plan if federated else default_recipe(workspace)
    kept = train_alone(workspace, recipe, on_round)
    return {"site": workspace.place.site, "round": kept.number, "rounds": kept.recipe.rounds}
