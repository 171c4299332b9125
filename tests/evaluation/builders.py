"""Small evaluations, made without a model."""

from entrodrop_tune.evaluation.results import EvalResults, Item, ModelRecord
from entrodrop_tune.evaluation.summary import summarise


def evaluation(path="base", tasks=None, **settings):
    """``tasks``: name -> {"scores": [...], and optionally group, metric, chance, higher, weights, clusters,
    rows (a name tasks over the same rows share)}."""
    summaries, items = {}, []
    for name, spec in (tasks or {}).items():
        metric = spec.get("metric", "acc")
        mine = [
            Item(
                task=name,
                doc_id=i,
                doc_hash=f"{spec.get('rows', name)}{i}",
                metrics={metric: score},
                weights={metric: spec["weights"][i]} if "weights" in spec else {},
                cluster=spec["clusters"][i] if "clusters" in spec else None,
            )
            for i, score in enumerate(spec["scores"])
        ]
        summaries[name] = summarise(
            mine,
            {metric: spec.get("higher", True)},
            {metric: spec["chance"]} if "chance" in spec else {},
            group=spec.get("group", "general"),
            version="1.0",
            num_fewshot=0,
            chat_template=False,
            primary=metric,
            data={"source": "bundled", "sha256": "0"},
            seconds=1.0,
        )
        items += mine
    return EvalResults(
        schema=1,
        model=ModelRecord(path=path, base=path, adapter=None, hash="0", parameters=1),
        suite="quick",
        settings={"seed": 0, "dtype": "fp32", **settings},
        versions={"lm_eval": "0.4.13"},
        machine={},
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        tasks=summaries,
        items=items,
    )
