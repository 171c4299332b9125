"""From the tuning sweep to the plan of the comparison: each arm's better setting, on seeds that no decision saw.

    python studies/effect/choose.py studies/effect/tiny_tuning.yaml studies/effect/results/tiny-tuning \
        studies/effect/tiny_comparison.yaml --baseline plain --seeds 1,2,3

The better setting is the one with the lower best validation NLL on the tuning seed.
"""

import argparse
from pathlib import Path

import stored
import yaml

from entrodrop_tune.analysis.summary import summarize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tuning", type=Path, help="the plan that was run, with arms NAME a and NAME b")
    parser.add_argument("results", type=Path, help="its collected runs")
    parser.add_argument("plan", type=Path, help="the plan to write")
    parser.add_argument("--baseline", required=True, help="arm without settings of its own")
    parser.add_argument("--seeds", required=True, help="joined by commas")
    args = parser.parse_args()
    tuning = yaml.safe_load(args.tuning.read_text())
    value = {run.arm: summarize(run.run).best_nll for run in map(stored.load, args.results.glob("*.json"))}
    missing = sorted(set(tuning["arms"]) - set(value))
    if missing:
        raise SystemExit(f"not collected yet: {', '.join(missing)}")
    arms = {args.baseline: {}}
    for name in dict.fromkeys(arm[:-2] for arm in tuning["arms"]):
        setting = min("ab", key=lambda letter: value[f"{name} {letter}"])
        arms[name] = tuning["arms"][f"{name} {setting}"]
    plan = {
        "title": "Effect, small family: each arm's better setting, fresh seeds",
        **{key: tuning[key] for key in ("config", "recipe", "overrides") if key in tuning},
        "baseline": args.baseline,
        "seeds": [int(seed) for seed in args.seeds.split(",")],
        "arms": arms,
    }
    header = "# Written by choose.py from the tuning runs.\n"
    args.plan.write_text(header + yaml.safe_dump(plan, sort_keys=False, width=120))


if __name__ == "__main__":
    main()
