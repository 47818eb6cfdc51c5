"""The tables of ``RESULTS.md``; what is missing is shown as missing."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from nexus_client.embed import default_base

from tests.bench.dendrite_arms import ARMS
from tests.bench.dendrite_data import SETS
from tests.bench.dendrite_figures import (
    Arms,
    Figure,
    Found,
    Seeds,
    apart,
    at,
    best_epoch,
    chosen,
    difference,
    fallen,
    general,
    kilobytes,
    last_round,
    parameters,
    reached,
    reaching,
    shown,
    side,
    table,
)
from tests.bench.dendrite_jobs import (
    BOTH,
    CORE,
    DISTILLATIONS,
    EPSILONS,
    NOISY,
    RETRIEVAL,
    SALIENCE_RATES,
    SETTINGS,
    UNTUNED,
)

LATE: Final = {"train loss x 1000": lambda result: 1000 * at("last", "train")(result), "fallen by": fallen}
CURVE: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
TEST: Final = "test"
CLAIMANTS: Final = ("linear", "two-layer linear", "linear twin", "1 dendrite", "1 dendrite, awake", "salience + linear",
                    "salience dendrite + linear")  # fmt: skip
SAME_COUNT: Final = (
    ("1 dendrite", "two-layer linear"),
    ("1 dendrite", "linear twin"),
    ("1 dendrite, awake", "linear twin, awake"),
    ("salience + 1 dendrite", "salience + linear twin"),
    ("salience dendrite + linear", "salience twin + linear"),
    *((f"rank {rank}, tanh", f"rank {rank}") for rank in (4, 8, 16, 32)),
)


def similarity(found: Found, kind: str) -> str:
    """STS-B in one setting."""
    arms, base = found.arms(kind, "stsb"), found.untuned("stsb")
    heads = ("arm", "seeds", "parameters", "kB", "train loss, epoch 30", "best dev", "its epoch",
             "epochs to linear's best dev", "dev, epoch 30", "fallen by", "test at best dev", "test, epoch 30",
             "STS 12-15 at best dev", "STS 12-15, epoch 30")  # fmt: skip
    rows = []
    if base is not None:
        dev, test, others = (f"{figure(base):.2f}" for figure in (at("best", "dev"), at("best", TEST), general("best")))
        loss = f"{base['best']['train']:.4f}"
        rows.append([UNTUNED.name, "", "0", "0", loss, dev, "", "", dev, "", test, test, others, others])
    for name, seeds in arms.items():
        loss, dev, epoch, late, fall, test, late_test, others, late_others = (
            shown([figure(result) for result in seeds.values()], digits)
            for figure, digits in ((at("last", "train"), 4), (at("best", "dev"), 2), (best_epoch, 1),
                                   (at("last", "dev"), 2), (fallen, 2), (at("best", TEST), 2), (at("last", TEST), 2),
                                   (general("best"), 2), (general("last"), 2))
        )  # fmt: skip
        if ARMS[name].grows is not None:  # it ends with its best weights, after as many epochs as its trials took
            loss = late = fall = late_test = late_others = "*"
        goal = reaching(seeds, arms.get("linear", {}))
        rows.append([name, str(len(seeds)), parameters([seeds]), kilobytes([seeds]), loss, dev, epoch, goal, late, fall,
                     test, late_test, others, late_others])  # fmt: skip
    return table(heads, rows)


def trials(found: Found, kind: str) -> str:
    """What the arms that grow have tried."""
    rows = []
    for name, seeds in found.arms(kind, "stsb").items():
        if every := [trial for result in seeds.values() for trial in result.get("trials", [])]:
            gains = [trial["dendrite"] - trial["control"] for trial in every]
            kept = sum(trial["kept"] for trial in every)
            span = f"{min(gains):+.3f} to {max(gains):+.3f}"
            rows.append([name, str(len(every)), str(kept), difference(gains, 3), span])
    return table(("arm", "trials", "kept", "dendrite less control, dev", "smallest and largest"), rows)


def case_study(found: Found) -> str:
    """The case study's own rows beside ours."""
    arms = {name: seeds for name, seeds in found.arms("case study", "stsb").items() if name in CLAIMANTS}
    linear, dendrite = arms.get("linear", {}), arms.get("1 dendrite", {})

    def row(name: str, theirs: str, figure: Figure, digits: int) -> list[str]:
        cells = [shown([figure(result) for result in seeds.values()], digits) for seeds in arms.values()]
        return [name, theirs, difference(apart(dendrite, linear, figure), digits), *cells]

    def fewer(seeds: Seeds) -> str:
        both = [
            (reached(seeds[s], linear[s]["best"]["dev"]), best_epoch(linear[s])) for s in linear.keys() & seeds.keys()
        ]
        each = [100 * (count / first - 1) for count, first in both if count is not None]
        return f"{difference(each, 0)} % in {len(each)} of {len(both)} seeds" if each else "never there"

    bytes_of_base = sum(file.stat().st_size for file in default_base().glob("*.safetensors"))
    added = 4 * (ARMS["1 dendrite"].parameters - ARMS["linear"].parameters)
    return table(("", "the case study says", "1 dendrite less linear", *arms), [
        row("train loss, epoch 30", "0.0038 without, 0.0036 with", at("last", "train"), 4),
        ["epochs to linear's best dev", "47 % fewer with", fewer(dendrite),
         *(reaching(seeds, linear) for seeds in arms.values())],
        ["the same, less linear's", "", "", *map(fewer, arms.values())],
        ["epochs to 0.1 below it", "", "", *(reaching(seeds, linear, 0.1) for seeds in arms.values())],
        row("best dev", "88.86 without, 88.91 with (its code trained all parameters)", at("best", "dev"), 2),
        row("dev, epoch 30, below the best", "a crash after epoch 10 without, none with", fallen, 2),
        ["kB", "587 added (0.66 %)", f"{added / 1000:.1f} ({100 * added / bytes_of_base:.2f} % of the base model)",
         *(kilobytes([seeds]) for seeds in arms.values())],
    ])  # fmt: skip


def compared(arms: Arms, figures: Mapping[str, Figure]) -> str:
    """Every arm against its controls; those that grew have no last epoch to compare."""
    rows = [
        [f"{name} − {other}", str(len(seeds.keys() & arms[other].keys()))]
        + ["*" if ARMS[name].grows and what in LATE else difference(apart(seeds, arms[other], figure))
           for what, figure in figures.items()]
        for name, seeds in arms.items()
        for other in ARMS[name].against
        if other in arms and ARMS[name].engine == "native"
    ]  # fmt: skip
    return table(("difference, seed by seed", "seeds", *figures), rows)


def curves(found: Found, kind: str) -> str:
    """Dev, epoch by epoch."""
    arms = {name: seeds for name, seeds in found.arms(kind, "stsb").items() if name in CORE and not ARMS[name].grows}
    rows = [
        [name, *(shown([r["curve"][epoch - 1]["dev"] for r in seeds.values()]) for epoch in CURVE)]
        for name, seeds in arms.items()
    ]
    return table(("dev after epoch", *map(str, CURVE)), rows)


def trained(found: Found, name: str) -> str:
    """One set, pooled and federated."""
    kinds = {kind: arms for kind in ("pooled", "federated") if (arms := found.arms(kind, name))}
    rows, base = [], found.untuned(name)
    if base is not None:
        looks = [f"{base['curve'][-1][split]:.2f}" for split in ("dev", TEST)]
        rows.append([UNTUNED.name, "0", "0", *["", *looks] * len(kinds)])
    for arm in ARMS:
        each = [arms.get(arm, {}) for arms in kinds.values()]
        if any(each):
            cells = []
            for seeds in each:
                figures = [[last_round(split)(result) for result in seeds.values()] for split in ("dev", TEST)]
                cells += [str(len(seeds)), *map(shown, figures)]
            rows.append([arm, parameters(each), kilobytes(each), *cells])
    heads = (f"{kind}, {what}" for kind in kinds for what in ("seeds", "dev", TEST))
    return table(("arm", "parameters", "kB", *heads), rows)


def unseen(found: Found, name: str) -> str:
    """Each site left out of training in turn, and judged on its test questions."""
    arms, base = found.unseen(name), found.untuned(name)
    if not arms or base is None:
        return "not measured yet\n"
    untuned = {seed: base["curve"][0][result["job"]["part"]] for s in arms.values() for seed, result in s.items()}
    rows = [[UNTUNED.name, str(len(untuned)), shown([*untuned.values()]), ""]]
    for arm, sites in arms.items():
        reached = {seed: last_round(TEST)(result) for seed, result in sites.items()}
        gains = [value - untuned[seed] for seed, value in reached.items()]
        rows.append([arm, str(len(sites)), shown([*reached.values()]), difference(gains)])
    return table(("arm", "unseen sites", "nDCG@10, mean over sites", "less untuned, site by site"), rows)


def salience_rates(found: Found) -> str:
    """Salience's learning rate, by dev."""
    rows = []
    for rate in SALIENCE_RATES:
        each = {name: found.arms("salience rate", name, str(rate)).get(BOTH, {}) for name in ("stsb", *RETRIEVAL)}
        similar = [*each["stsb"].values()]
        cells = [shown([figure(result) for result in similar]) for figure in (at("best", "dev"), fallen)]
        cells += [shown([last_round("dev")(result) for result in each[name].values()]) for name in RETRIEVAL]
        rows.append([f"{rate:g}", str(len(similar)), *cells])
    return table(("salience's learning rate", "seeds", "STS-B, best dev", "fallen by epoch 30", *RETRIEVAL), rows)


def distillations(found: Found) -> str:
    """The weight of distillation, by dev: what each set gains, and what two federations make of the others."""
    rows = []
    for weight in DISTILLATIONS:
        each = {name: found.arms("distillation", name, str(weight)).get(BOTH, {}).values() for name in SETS}
        cells = [shown([figure(result) for result in each["stsb"]]) for figure in (at("best", "dev"), fallen)]
        for name in RETRIEVAL:
            cells.append(shown([last_round("dev")(result) for result in each[name]]))
            cells += [shown([r["elsewhere"][other]["dev"] for r in each[name]]) for other in SETS if other != name]
            cells.append(shown([r["elsewhere"]["general"]["mean"] for r in each[name]]))
        rows.append([f"{weight:g}", str(max(map(len, each.values()))), *cells])
    heads = [f"{name}: {what}" for name in RETRIEVAL
             for what in ("own", *(other for other in SETS if other != name), "STS 12-15")]  # fmt: skip
    return table(("weight", "seeds, at most", "STS-B, best dev", "fallen by epoch 30", *heads), rows)


def noise(found: Found) -> str:
    """Test figures under noise, each at the learning rate that its dev figure chose."""
    rows = []
    for arm in NOISY:
        cells, last = [], []
        for epsilon in EPSILONS:
            parts = [part for part in found.parts("noise", "stsb") if float(part.split()[0]) == epsilon]
            tried = [(part, s) for part in parts if (s := found.arms("noise", "stsb", part).get(arm))]
            if not tried:
                cells.append("–")
                continue
            part, last = max(tried, key=lambda one: np.mean([last_round("dev")(r) for r in one[1].values()]))
            cells.append(f"{shown([last_round(TEST)(r) for r in last.values()])} [{part.split()[1]}]")
        rows.append([arm, parameters([last]) if last else "", *cells])
    return table(("arm", "parameters", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)), rows)


def blocks(found: Found) -> dict[str, tuple[Arms, Figure]]:
    """Every way of measuring, with its test figure."""
    return {
        **{f"STS-B, {kind}": (found.arms(kind, "stsb"), at("best", TEST)) for kind in SETTINGS},
        "STS-B, federated": (found.arms("federated", "stsb"), last_round(TEST)),
        **{f"{name}, {kind}": (found.arms(kind, name), last_round(TEST))
           for name in RETRIEVAL for kind in ("pooled", "federated")},
        **{f"{name}, unseen site": (found.unseen(name), last_round(TEST)) for name in RETRIEVAL},
    }  # fmt: skip


def same_count(found: Found) -> str:
    """Dendrites against linear controls of exactly as many parameters, on test, wherever both were measured."""
    every, sides = blocks(found), []
    rows = []
    for name, (arms, figure) in every.items():
        cells = []
        for first, second in SAME_COUNT:
            values = apart(arms.get(first, {}), arms.get(second, {}), figure)
            cells.append(difference(values))
            sides += [side(values)] if len(values) > 1 else []
        rows.append([name, *cells])
    told = (
        f"Of {len(sides)} intervals, {sides.count(1)} lie above 0, {sides.count(-1)} below, {sides.count(0)} span it. "
        f"If nothing differed, about {len(sides) / 20:.0f} would leave it out by chance.\n\n"
    )
    return told + table(("test", *(f"{first} − {second}" for first, second in SAME_COUNT)), rows)


def choices(found: Found) -> str:
    """What dev chose, and what that is worth on test; and what STS-B's dev chose, on the other sets."""
    first = chosen(found.arms("shipped", "stsb"), at("best", "dev"))
    rows = []
    for name, (arms, figure) in blocks(found).items():
        dev = at("best", "dev") if name.removeprefix("STS-B, ") in SETTINGS else last_round("dev")
        own = None if "unseen" in name else chosen(arms, dev)
        cells = [difference(apart(arms.get(arm or "", {}), arms.get(other, {}), figure))
                 for arm in (own, first) for other in ("linear", "salience + linear")]  # fmt: skip
        rows.append([name, own or "–", *cells])
    return table(("test", "chosen on its own dev", "less linear", "less salience + linear",
                  f"STS-B's choice, {first}, less linear", "less salience + linear"), rows)  # fmt: skip
