"""Rebuild every table and figure of docs/results.md from the runs' JSON files.

    python studies/effect/table.py            write docs/results.md's tables, docs/results/*.png and tables.json
    python studies/effect/table.py --check    exit code 1 when what is written differs from what the runs say

Tables stand between `<!-- table: NAME -->` and `<!-- end -->`; the text around them is written by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import stored
from matplotlib.figure import Figure
from scipy import stats

from entrodrop_tune.analysis.runs import jsonable
from entrodrop_tune.analysis.style import house_style, legend_above, save_png, series_style
from entrodrop_tune.analysis.summary import summarize

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE, FOLDER = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
BASELINES = [
    "plain", "weight decay", "hidden dropout", "hidden dropout 0.1", "NEFTune", "label smoothing", "random loss",
    "random input", "random input ramp", "random input + decay", "NEFTune + decay", "lowest loss", "EAFT", "DFT",
]  # fmt: skip
FAMILIES = {
    "tiny": "small family",
    "tiny-added": "small family, second round",
    "tiny-mbpp": "small family, MBPP",
    "tiny-pubmedqa": "small family, PubMedQA",
    "real": "SmolLM2-135M",
    "real-lora": "SmolLM2-135M, LoRA",
}
REFERENCE = {"tiny-added": "NEFTune + decay"}  # by the plan; elsewhere the baseline with the lowest mean best NLL
GUIDANCE = [  # the same dropping, guided by entropy and blind, each at its tuned setting
    ("entropy loss ramp", "random loss"),
    ("entropy input ramp", "random input"),
    ("entropy input + decay", "random input + decay"),
    ("entropy input", "random input"),
    ("entropy input ramp", "random input ramp"),
]
DECAYED = ["weight decay", "NEFTune + decay", "random input + decay", "entropy input + decay", "adaptive + decay"]
CURVES = 6  # arms in the figure


def runs_table(folder: Path) -> pd.DataFrame:
    """A row a run: arm, seed, and the measures of the plan."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        one = stored.load(path)
        summary = summarize(one.run)
        change = {
            which: np.mean([one.general[which][name] - nll for name, nll in one.general["base"].items()])
            for which in ("best", "last")
        }
        rows.append(
            {
                "arm": one.arm,
                "seed": one.seed,
                "best_nll": summary.best_nll,
                "best_epoch": summary.best_epoch,
                "degradation": summary.degradation,
                "effective_epochs": summary.effective_epochs,
                "forgetting_best": change["best"],
                "forgetting_last": change["last"],
                "curve": one.run.validation.set_index("epoch")["nll"],
            }
        )
    return pd.DataFrame(rows)


def difference(table: pd.DataFrame, arm: str, baseline: str, measure: str) -> dict:
    """Arm minus baseline over the seeds both have: mean, 95 % t interval of the paired difference, seeds."""
    wide = table.pivot(index="seed", columns="arm", values=measure)
    delta = (wide[arm] - wide[baseline]).dropna()
    result = {"value": delta.mean(), "n": len(delta), "low": None, "high": None, "p": None}
    if len(delta) > 1 and delta.std() > 0:
        test = stats.ttest_1samp(delta, 0.0)
        interval = test.confidence_interval(0.95)
        result |= {"low": interval.low, "high": interval.high, "p": test.pvalue}
    return result


def verdict(delta: dict, scale: float, lower_is_better: bool = True) -> str:
    """The rule of the plan."""
    if delta["low"] is None:
        return "cannot be told"
    sign = 1 if lower_is_better else -1
    low, high = sorted((sign * delta["low"], sign * delta["high"]))
    if high < 0:
        return "holds here"
    if low > 0 or max(-low, high) <= 0.01 * abs(scale):
        return "does not hold here"
    return "cannot be told"


def analyse(table: pd.DataFrame, reference: str | None) -> dict:
    """Means, differences to plain and to the best tuned baseline, and which that is."""
    means = table.drop(columns="curve").groupby("arm").mean()
    baselines = [arm for arm in means.index if arm in BASELINES]
    best = reference or means.loc[baselines, "best_nll"].idxmin()
    arms = []
    for arm in means.sort_values("best_nll").index:
        arms.append(
            {
                "arm": arm,
                "baseline": arm in BASELINES,
                "seeds": sorted(table[table["arm"] == arm]["seed"].tolist()),
                **means.loc[arm].drop("seed").to_dict(),
                "best_nll_to_plain": difference(table, arm, "plain", "best_nll") if "plain" in means.index else None,
                "best_nll_to_best_baseline": difference(table, arm, best, "best_nll"),
                "degradation_to_best_baseline": difference(table, arm, best, "degradation"),
                "effective_epochs_to_best_baseline": difference(table, arm, best, "effective_epochs"),
                "forgetting_to_best_baseline": difference(table, arm, best, "forgetting_best"),
            }
        )
    guidance = [
        {
            "entropy": guided,
            "random": blind,
            **{measure: difference(table, guided, blind, measure) for measure in ("best_nll", "degradation")},
        }
        for guided, blind in GUIDANCE
        if guided in means.index and blind in means.index
    ]
    return {"best_baseline": best, "arms": arms, "guidance": guidance}


def _signed(delta: dict) -> str:
    if delta["low"] is None:
        return "–" if delta["value"] == 0 else f"{delta['value']:+.3f} (n={delta['n']})"
    return f"{delta['value']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]"


def arms_table(found: dict) -> str:
    """The family's table, best arm first; baselines in italics."""
    with_plain = found["arms"][0]["best_nll_to_plain"] is not None
    columns = ["arm", "best NLL", *(["to plain"] if with_plain else []), f"to {found['best_baseline']}", "best epoch"]
    columns += ["final degradation", "useful epochs", "forgetting, best", "forgetting, last"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for row in found["arms"]:
        cells = [f"*{row['arm']}*" if row["baseline"] else row["arm"], f"{row['best_nll']:.3f}"]
        cells += [_signed(row["best_nll_to_plain"])] if with_plain else []
        cells += [_signed(row["best_nll_to_best_baseline"]), f"{row['best_epoch']:.1f}", f"{row['degradation']:.3f}"]
        cells += [f"{row['effective_epochs']:.1f}", f"{row['forgetting_best']:+.3f}", f"{row['forgetting_last']:+.3f}"]
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def verdict_table(found: dict) -> str:
    """The plan's verdict on each part of the claim, for every arm that drops or weights by entropy."""
    reference = next(row for row in found["arms"] if row["arm"] == found["best_baseline"])
    lines = [
        "| arm | lower best NLL | less final degradation | longer useful training | less forgetting |",
        "|---|---|---|---|---|",
    ]
    for row in found["arms"]:
        if row["baseline"]:
            continue
        cells = [
            verdict(row["best_nll_to_best_baseline"], reference["best_nll"]),
            verdict(row["degradation_to_best_baseline"], reference["degradation"]),
            verdict(row["effective_epochs_to_best_baseline"], reference["effective_epochs"], lower_is_better=False),
            verdict(row["forgetting_to_best_baseline"], reference["forgetting_best"]),
        ]
        lines.append(_row([row["arm"], *cells]))
    return "\n".join(lines)


def guidance_table(found: dict) -> str:
    """Entropy-guided dropping less random dropping."""
    lines = [
        "| guided by entropy | blind | best NLL, guided − blind | final degradation, guided − blind |",
        "|---|---|---|---|",
    ]
    for row in found["guidance"]:
        lines.append(_row([row["entropy"], row["random"], _signed(row["best_nll"]), _signed(row["degradation"])]))
    return "\n".join(lines)


def decay_table(results: Path) -> str:
    """Best NLL on the tuning seed by weight decay, each arm at the better of its other settings."""
    rows = []
    for path in sorted([*results.glob("tiny-tuning/*.json"), *results.glob("tiny-decay-tuning/*.json")]):
        one = stored.load(path)
        if one.arm[:-2] in DECAYED:
            rows.append((one.arm[:-2], one.run.config["optimizer"]["weight_decay"], summarize(one.run).best_nll))
    best = pd.DataFrame(rows, columns=["arm", "decay", "nll"]).pivot_table("nll", "arm", "decay", "min")
    lines = [_row(["arm", *(f"decay {decay:g}" for decay in best)]), _row(["---"] * (1 + len(best.columns)))]
    for arm in DECAYED:
        lines.append(_row([arm, *("–" if np.isnan(nll) else f"{nll:.3f}" for nll in best.loc[arm])]))
    return "\n".join(lines)


def draw(table: pd.DataFrame, found: dict, title: str) -> Figure:
    """Validation NLL over the epochs: mean over seeds of the best arms, and plain."""
    with house_style():
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        ranked = [row["arm"] for row in found["arms"]]
        names = [arm for arm in dict.fromkeys(["plain", found["best_baseline"], *ranked]) if arm in ranked][:CURVES]
        for index, arm in enumerate(names):
            curve = pd.concat(table[table["arm"] == arm]["curve"].tolist(), axis=1).mean(axis=1)
            axes.plot(curve.index[1:], curve.to_numpy()[1:], label=arm, **series_style(index))
        axes.set(xlabel="epoch", ylabel=f"{title}: validation NLL, mean over seeds")
        legend_above(axes)
        return figure


def insert(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` in the place of the table ``name``."""
    pattern = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)"
    page, count = re.subn(pattern, lambda place: f"{place[1]}\n{text}\n\n{place[2]}", page, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{PAGE.name} needs one place for the table {name}, it has {count}")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page, everything, figures = PAGE.read_text(), {}, {}
    for family, title in FAMILIES.items():
        table = runs_table(RESULTS / family)
        if table.empty:
            continue
        found = everything[family] = analyse(table, REFERENCE.get(family))
        figures[family] = draw(table, found, title)
        tables = {"arms": arms_table, "verdicts": verdict_table, "guidance": guidance_table}
        for name, table_of in tables.items():
            page = insert(page, f"{family} {name}", table_of(found))
    page = insert(page, "decay", decay_table(RESULTS))
    rendered = json.dumps(jsonable(everything), indent=1) + "\n"
    if args.check:
        same = page == PAGE.read_text() and rendered == (FOLDER / "tables.json").read_text()
        sys.exit(0 if same else f"{PAGE.name} is not what the runs say: make study-table")
    FOLDER.mkdir(exist_ok=True)
    PAGE.write_text(page)
    (FOLDER / "tables.json").write_text(rendered)
    for family, figure in figures.items():
        save_png(figure, FOLDER / f"{family}.png")


if __name__ == "__main__":
    main()
