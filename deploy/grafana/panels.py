"""How every panel looks: a question, what it means, a unit, what is shown where there is nothing, and where it stands.

Panels are made with the typed builders of Grafana's own SDK, so a key that Grafana does not have is an error here.
``@`` in a query stands for the choice at the top of the dashboard.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HIGH, LOW = 24, 8, 5  # of the grid, of a curve, of a figure
GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"


@dataclass(frozen=True)
class Panel:
    """``queries`` by legend; ``kind`` is figures, bars, states or curves; ``steps`` colour values from there on."""

    question: str
    told: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "curves"
    empty: str = "no data: is the program up, and scraped?"
    width: int = 8
    steps: Mapping[float | None, str] = field(default_factory=lambda: {None: BLUE})
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # a value's text and colour
    most: float | None = None

    def built(self, choice: str) -> Any:
        """The SDK's builder of it; ``choice`` takes the place of ``@``."""
        panel = {"figures": self._figures, "bars": _bars, "states": _states, "curves": _curves}[self.kind]()
        panel.title(self.question).description(self.told).unit(self.unit).no_value(self.empty).datasource(SOURCE)
        colours = [model.Threshold(value=value, color=colour) for value, colour in self.steps.items()]
        panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(colours))
        panel.min(0)
        if self.most is not None:
            panel.max(self.most)
        if self.words:
            panel.mappings([model.ValueMap(options=dict(self._named()))])
        for letter, (legend, query) in zip("ABCD", self.queries.items(), strict=False):
            asked = prometheus.Dataquery().datasource(SOURCE).expr(query.replace("@", choice)).ref_id(letter)
            now = self.kind in ("figures", "bars")  # what is true now, not the last that was
            panel.with_target((asked.instant() if now else asked.range()).legend_format(legend))
        return panel.span(self.width)

    def _named(self) -> Iterable[tuple[str, model.ValueMappingResult]]:
        for place, (value, (text, colour)) in enumerate(self.words.items()):
            yield value, model.ValueMappingResult(text=text, color=colour, index=place)

    def _figures(self) -> stat.Panel:
        many = len(self.queries) > 1 or any("{{" in legend for legend in self.queries)
        mode = looks.BigValueTextMode.VALUE_AND_NAME if many else looks.BigValueTextMode.VALUE
        panel = stat.Panel().reduce_options(_last()).graph_mode(looks.BigValueGraphMode.NONE)
        return panel.text_mode(mode).color_mode(looks.BigValueColorMode.VALUE)


def _bars() -> bargauge.Panel:
    panel = bargauge.Panel().reduce_options(_last()).orientation(looks.VizOrientation.HORIZONTAL)
    return panel.display_mode(looks.BarGaugeDisplayMode.BASIC)


def _states() -> statetimeline.Panel:
    panel = statetimeline.Panel().show_value(looks.VisibilityMode.NEVER).merge_values(True)
    return panel.legend(_legend()).row_height(0.8)


def _curves() -> timeseries.Panel:
    panel = timeseries.Panel().line_width(1).fill_opacity(8).show_points(looks.VisibilityMode.AUTO)
    return panel.legend(_legend()).tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI))


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST)
    return legend.placement(looks.LegendPlacement.BOTTOM).show_legend(True)


def chosen(label: str, title: str, metric: str) -> dashboard.QueryVariable:
    """A choice among the values of a metric's label; all of them at first."""
    made = dashboard.QueryVariable(label).label(title).datasource(SOURCE).query(f"label_values({metric}, {label})")
    made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".*").current(model.VariableOption(text="All", value="$__all"))


def board(
    title: str,
    uid: str,
    told: str,
    choice: tuple[str, str, str],
    rows: Mapping[str, list[Panel]],
) -> str:
    """A dashboard's JSON; ``choice`` is the label, its title and the metric whose values may be chosen from."""
    made = dashboard.Dashboard(title).uid(uid).description(told).tags(["nexus"]).timezone("browser")
    made.time("now-6h", "now").refresh("30s").tooltip(model.DashboardCursorSync.CROSSHAIR)
    made.with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
    made.with_variable(chosen(*choice))
    for question, panels in rows.items():
        made.with_row(dashboard.Row(question))
        for line in _lines(panels):
            height = LOW if all(panel.kind == "figures" for panel in line) else HIGH
            for panel in line:
                made.with_panel(panel.built(f'{choice[0]}=~"${choice[0]}"').height(height))
    found = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(found["panels"], start=1):
        panel["id"] = number
    found.pop("style", None)  # the SDK writes keys that Grafana's schema does not have
    for one in found["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min", "id"):
            one.pop(key, None)
    return json.dumps(_without_nulls(found), indent=2, sort_keys=True) + "\n"


def _lines(panels: list[Panel]) -> list[list[Panel]]:
    """Panels as they stand beside each other."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(one.width for one in lines[-1]) + panel.width > WIDTH:
            lines.append([])
        lines[-1].append(panel)
    return lines


def _without_nulls(found: Any) -> Any:
    """Without the keys that are null, but for ``value``: a threshold's first step has that, and it means the least."""
    if isinstance(found, dict):
        return {key: _without_nulls(one) for key, one in found.items() if one is not None or key == "value"}
    return [_without_nulls(one) for one in found] if isinstance(found, list) else found
