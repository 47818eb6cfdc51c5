"""What a site's commands show of its text and its models: preview, evaluation, training alone.  It all stays here."""

from collections.abc import Callable
from pathlib import Path

from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import Recipe, read_recipe
from nexus_common.versions import StoredAdapter

from nexus_client.acceptance import THE_BASE, compare
from nexus_client.agent_api import EvaluateReport, PreviewReport
from nexus_client.alone import default_recipe, train_alone
from nexus_client.choice import choose
from nexus_client.consent import Consent
from nexus_client.evaluate import difference
from nexus_client.judge import Embeddings, judge
from nexus_client.judging import judge_newest
from nexus_client.model_list import BASE, KINDS
from nexus_client.rows import Pair, Row, Scored, Utterance
from nexus_client.searched import MOST_LOST, judged_as_searched
from nexus_client.shelf import Shelf, name_of
from nexus_client.site import SiteHome
from nexus_client.split import hold_out_warnings, side
from nexus_client.workspace import Workspace

SHOWN_CHARACTERS = 200
IN_USE = "in use"
IN_SEARCH = "in search"


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
    """All models on the part of the hold-out that is only there to judge by, after the choice on the other part."""
    consent, shelf = Consent(workspace.place), Shelf(workspace.place)
    federated = StoredAdapter.read(workspace.place.federated_file)
    warnings = hold_out_warnings(workspace.material)
    if federated and federated.plan.base_model != workspace.base_hash:
        warnings.append(
            f"version {federated.number} of run {federated.plan.name} belongs to another base model than base_model in "
            "site.toml, so it is not shown"
        )
    judge_newest(workspace, consent)
    max_loss = consent.policy.max_loss
    of_kind = choose(workspace, max_loss)
    judged_version = of_kind.get("federated")
    adapters: dict[str, tuple[Layout, Vector]] = {
        kind: (of_kind[kind].layout, of_kind[kind].vector) for kind in KINDS if kind in of_kind
    }
    models, names = shelf.models, {BASE: BASE} | {name_of(model, kind): kind for kind, model in of_kind.items()}
    also = {IN_USE: names[models.in_use]} if models.in_use in names else {}
    if not also and (kept := shelf.load(models.in_use)):
        adapters |= {IN_USE: (kept.layout, kept.vector)}
    shown = "federated" if "federated" in adapters else None
    given = dict[str, Embeddings]()
    try:
        if (searched := judged_as_searched(workspace, models.in_use)) is not None:
            given[IN_SEARCH] = searched
    except NexusError as problem:
        warnings.append(f"what search finds with was not judged: {problem}")
    judged = judge(workspace, adapters, shown=shown, also=also, given=given)
    verdict = ""
    if models.in_use != BASE and judged.rows:
        against_base = compare(judged.rows[IN_USE], judged.rows[BASE], max_loss)
        verdict = against_base.against(THE_BASE)
        if against_base.verdict == "cannot tell":
            warnings.append(f"the hold-out is too small to tell what the model in use is worth: {verdict}")
    if IN_SEARCH in judged.rows:
        lost = difference("score", judged.rows[IN_USE], judged.rows[IN_SEARCH])
        if lost.mean > MOST_LOST and lost.verdict == "better":
            warnings.append(
                f"search loses {100 * lost.mean:.1f} points with the weights that it runs ({100 * lost.low:.1f} to "
                f'{100 * lost.high:.1f}, {lost.questions} questions); with precision = "fp32" in site.toml, and agent '
                "and serve started again, it takes 32-bit weights, more memory, and encodes all passages again"
            )
    report = EvaluateReport(
        site=workspace.place.site,
        rows=workspace.rows.count,
        run=judged_version.plan.name if judged_version else None,
        version=judged_version.number if judged_version else None,
        in_use=models.in_use,
        pinned=models.pinned is not None,
        why=models.reason,
        verdict=verdict,
        lines=judged.lines,
        examples=judged.examples,
        warnings=warnings,
    )
    kept_report = report.model_copy(update={"examples": []})  # for the site's report, in which no text stands
    write_durably(workspace.place.evaluation_file, kept_report.model_dump_json().encode())
    return report


def train_local(workspace: Workspace, plan: Path | None, on_round: Callable[[int, int], None]) -> dict[str, object]:
    """Train on this site alone; the recipe is that of a plan, of the run in use, or the shipped one."""
    federated = StoredAdapter.read(workspace.place.federated_file)
    recipe: Recipe = read_recipe(plan) if plan else federated.plan if federated else default_recipe(workspace)
    kept = train_alone(workspace, recipe, on_round)
    return {"site": workspace.place.site, "round": kept.number, "rounds": kept.recipe.rounds}
