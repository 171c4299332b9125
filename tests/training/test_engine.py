"""What a run does: against independent computations with transformers, and option by option."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from entrodrop_tune.data import collate, load_data
from entrodrop_tune.errors import UserError
from entrodrop_tune.method import TokenSelector
from entrodrop_tune.models import AdapterConfig, ModelConfig, load_model, load_tokenizer
from entrodrop_tune.training import launch
from entrodrop_tune.training.build import build
from entrodrop_tune.training.distributed import World, pick_device
from entrodrop_tune.training.engine import TrainingFailure
from entrodrop_tune.training.launch import load_config, run_training
from entrodrop_tune.training.loss_model import LossModel
from entrodrop_tune.training.optimizer import backward_and_update
from entrodrop_tune.training.preflight import preflight
from tests.tiny import tiny_model_dir
from tests.training.runs import ADAPTER, TINY, journal, lines, overrides, weights


@pytest.fixture
def train(lively_model, tiny_data, tmp_path):
    """Run training with overrides; returns the run's folder."""

    def run(*more: str, recipe: str = "full_finetune", name: str = "run"):
        config = load_config(TINY, overrides(lively_model, tiny_data, tmp_path / name, *more))
        assert run_training(recipe, config) == 0
        return tmp_path / name

    return run


def reference_scores(model, samples) -> tuple[np.ndarray, np.ndarray]:
    """NLL and entropy of every target token, float64, from transformers' logits."""
    nlls, entropies = [], []
    for sample in samples:
        batch = collate([(sample,)], pad_id=0)
        with torch.no_grad():
            logits = model(batch.tokens).logits[0].double()
        target = batch.labels[0] != -100
        log_p = logits[target].log_softmax(-1)
        nlls.append(-log_p.gather(1, batch.labels[0][target].unsqueeze(1)).squeeze(1))
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(nlls).numpy(), torch.cat(entropies).numpy()


def test_validation_equals_transformers_before_and_after(train, lively_model, tiny_data):
    run = train()
    config = load_config(TINY, overrides(lively_model, tiny_data, run))
    samples = load_data(config.data, load_tokenizer(lively_model), progress=False).validation
    rows = lines(run / "validation.jsonl")
    base = AutoModelForCausalLM.from_pretrained(lively_model)
    _, base_entropy = reference_scores(base, samples)
    low = base_entropy < np.median(base_entropy)
    for model, row in ((base, rows[0]), (AutoModelForCausalLM.from_pretrained(run / "last"), rows[-1])):
        nll, entropy = reference_scores(model, samples)
        assert row["nll"] == pytest.approx(nll.mean(), rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
        assert row["entropy_mean"] == pytest.approx(entropy.mean(), rel=1e-5)
        assert row["nll_low_entropy"] == pytest.approx(nll[low].mean(), rel=1e-5)
        assert row["nll_high_entropy"] == pytest.approx(nll[~low].mean(), rel=1e-5)
        assert row["tokens"] == nll.size


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (2, 2)])
def test_microbatches_do_not_change_the_run(train, batch_size, accumulation):
    settings = ["entrodrop.drop_rate=0.7", "optimizer.eps=0.001"]
    whole = lines(train(*settings, "batch_size=4", name="whole") / "metrics.jsonl")
    cut = [*settings, f"batch_size={batch_size}", f"gradient_accumulation_steps={accumulation}"]
    parts = lines(train(*cut, name="parts") / "metrics.jsonl")
    assert [row["kept_fraction"] for row in whole] == [row["kept_fraction"] for row in parts]
    assert min(row["kept_fraction"] for row in whole) < 0.9
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in whole] == pytest.approx([row[key] for row in parts], rel=1e-4), key


@pytest.mark.parametrize(
    "option",
    [
        "enable_activation_checkpointing=true",
        "validation.batch_size=1",
        pytest.param("compile=true", marks=pytest.mark.slow),
    ],
)
def test_options_that_only_save_memory_or_time_change_nothing(train, option):
    settings = ["optimizer.eps=0.001"]
    plain = lines(train(*settings, name="plain") / "metrics.jsonl")
    saving = lines(train(*settings, option, name="saving") / "metrics.jsonl")
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in saving], rel=1e-5)


IN_BACKWARD = ["optimizer_in_bwd=true", "clip_grad_norm=null"]


@pytest.mark.parametrize(
    "more",
    [
        ["entrodrop.drop_rate=0.7", "optimizer.weight_decay=0.1", "model.hidden_dropout=0.1"],
        ["dtype=bf16", "enable_activation_checkpointing=true"],
        ["dtype=bf16-mixed", "regularization.kl_to_base=0.5", "entrodrop.threshold={nats: 100}"],
    ],
)
def test_updates_within_the_backward_pass_change_no_bit(train, more):
    """The whole run, its resume state included, and a run may change from one way to the other."""
    plain = train(*more, "clip_grad_norm=null", name="plain")
    early = train(*more, *IN_BACKWARD, name="early")
    assert journal(early) == journal(plain)
    assert weights(early / "last") == weights(plain / "last")
    mixed = train(*more, *IN_BACKWARD, "max_steps=6", name="mixed")
    train(*more, "clip_grad_norm=null", "resume=true", name="mixed")
    assert weights(mixed / "last") == weights(plain / "last")


def test_a_gradient_is_freed_before_the_next_one_exists(lively_model):
    model = LossModel(load_model(ModelConfig(path=str(lively_model))))
    parameters = list(model.parameters())
    held = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            held.append(sum(parameter.grad is not None for parameter in parameters))
            return super().step(closure)

    tokens = torch.arange(24).view(2, 12)
    loss = model(tokens, tokens, torch.arange(12).expand(2, 12), None).loss_sum
    backward_and_update(loss, Counting(parameters, lr=1e-3), torch.tensor(1 / 24))
    assert held == [1] * len(parameters)
    assert not any(parameter.grad is not None for parameter in parameters)


def test_packing_gives_the_same_loss_in_fewer_rows(train):
    settings = ["epochs=1", "batch_size=12", "entrodrop.select=none", "lr_scheduler.warmup_fraction=0"]
    plain = lines(train(*settings, name="plain") / "metrics.jsonl")
    packed = lines(train(*settings, "data.packing=true", "data.max_length=200", name="packed") / "metrics.jsonl")
    assert len(plain) == len(packed) == 1
    assert packed[0]["tokens"] == plain[0]["tokens"]
    assert packed[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


def test_the_first_loss_is_the_mean_over_kept_tokens(train, lively_model, tiny_data):
    """A fixed threshold and drop rate 1: who is kept is decided by transformers' own entropies."""
    settings = ["epochs=1", "batch_size=12", "entrodrop.threshold={nats: 3.8}", "entrodrop.drop_rate=1.0"]
    run = train(*settings)
    config = load_config(TINY, overrides(lively_model, tiny_data, run))
    samples = load_data(config.data, load_tokenizer(lively_model), progress=False).train
    nll, entropy = reference_scores(AutoModelForCausalLM.from_pretrained(lively_model), samples)
    kept = entropy >= 3.8
    assert 0.1 < kept.mean() < 0.9
    row = lines(run / "metrics.jsonl")[0]
    assert row["kept_fraction"] == pytest.approx(kept.mean())
    assert row["loss"] == pytest.approx(nll[kept].mean(), rel=1e-5)
    assert row["nll_all"] == pytest.approx(nll.mean(), rel=1e-5)


def test_what_drops_nothing_shows_no_threshold(train):
    for select in ("none", "dft"):
        rows = lines(train(f"entrodrop.select={select}", "entrodrop.preset=constant", name=select) / "metrics.jsonl")
        assert {(row["threshold"], row["drop_rate"]) for row in rows} == {(None, 0.0)}


def test_dropping_everything_updates_nothing_and_is_counted(train, lively_model):
    run = train("entrodrop.threshold={nats: 100}", "entrodrop.drop_rate=1.0", "optimizer.weight_decay=0.5")
    before, after = (load_file(folder / "model.safetensors") for folder in (lively_model, run / "last"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    summary = json.loads((run / "run.json").read_text())["summary"]
    assert summary["skipped_steps"] == summary["steps"] == 12


@pytest.mark.parametrize(
    "more",
    [
        ["entrodrop.site=input"],
        ["entrodrop.site=input", "entrodrop.replacement=noise"],
        ["entrodrop.site=both"],
        ["entrodrop.select=random"],
        ["entrodrop.select=loss"],
        ["entrodrop.select=fitted"],
        ["entrodrop.select=fitted", "entrodrop.site=input"],
        ["entrodrop.select=soft"],
        ["entrodrop.source=base"],
        ["entrodrop.source=average", "entrodrop.site=input"],
        ["entrodrop.scope=sample"],
        ["entrodrop.select=eaft_axolotl"],
        ["entrodrop.select=dft"],
        ["entrodrop.preset=ease", "entrodrop.per=step"],
        ["regularization.label_smoothing=0.1"],
        ["regularization.neftune_noise_alpha=5"],
        ["regularization.kl_to_base=0.5"],
        ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"],
        ["dtype=bf16-mixed"],
        ["dtype=bf16"],
        ["optimizer._component_=torch.optim.SGD"],
        ["optimizer.fused=true"],
        ["lr_scheduler.name=wsd"],
        ["lr_scheduler.name=linear"],
    ],
)
def test_every_arm_trains_and_differs_from_plain(train, more):
    plain = lines(train("entrodrop.select=none", name="plain") / "validation.jsonl")
    rows = lines(train("entrodrop.drop_rate=0.7", *more, name="arm") / "validation.jsonl")
    assert all(math.isfinite(row["nll"]) for row in rows)
    assert rows[-1]["nll"] < rows[0]["nll"], "it learned"
    assert rows[-1]["nll"] != plain[-1]["nll"], "the option did something"


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("kl", ["0", "0.5"])
def test_adapters_train_and_leave_the_base_alone(train, kind, kl):
    more = [*ADAPTER, f"adapter.type={kind}", f"regularization.kl_to_base={kl}", "optimizer.lr=0.01"]
    run = train(*more, recipe="lora_finetune")
    rows = lines(run / "validation.jsonl")
    assert rows[-1]["nll"] < rows[0]["nll"]
    record = json.loads((run / "run.json").read_text())
    assert 0 < record["parameters"]["trainable"] < record["parameters"]["total"] / 2
    assert (run / "last" / "adapter_config.json").exists() and not (run / "last" / "model.safetensors").exists()


def test_kl_keeps_the_model_near_its_base(train):
    free = lines(train("entrodrop.select=none", "epochs=4", name="free") / "validation.jsonl")
    held = lines(
        train("entrodrop.select=none", "epochs=4", "regularization.kl_to_base=100", name="held") / "validation.jsonl"
    )
    moved = [abs(rows[-1]["nll"] - rows[0]["nll"]) for rows in (held, free)]
    assert moved[0] < 0.5 * moved[1]


TOKENS = torch.arange(48).view(2, 24) % 40
PLACES = torch.arange(24).expand(2, 24)


def loss_model(path, adapter=None, **options) -> LossModel:
    config = ModelConfig(path=str(path), hidden_dropout=options.pop("hidden_dropout", 0.0))
    frozen = load_model(ModelConfig(path=str(path))).requires_grad_(False) if adapter is None else None
    return LossModel(load_model(config, adapter), base=frozen, kl_to_base=1.0, **options)


def test_the_base_that_adapters_are_held_to_has_no_dropout(lively_model):
    """A fresh adapter changes nothing, so its KL is that of the full model, whose base is a copy of its own."""
    losses = []
    for adapter in (None, AdapterConfig(type="lora", rank=4, alpha=8)):
        model = loss_model(lively_model, adapter, hidden_dropout=0.5)
        torch.manual_seed(0)
        losses.append(float(model(TOKENS, TOKENS, PLACES, None).loss_sum.detach()))
        assert all(module.training for module in model.decoder.modules())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("mode", ["entropy", "soft", "dft"])
def test_the_kl_term_is_a_mean_over_what_the_loss_is_divided_by(mode, lively_model, tmp_path):
    """Against a full softmax: the coefficient means the same whatever the rule does to the tokens."""
    rule = TokenSelector(mode)
    model = loss_model(lively_model, normalizer=rule.normalizer)
    other = load_model(ModelConfig(path=str(tiny_model_dir(tmp_path / "other", seed=1, initializer_range=0.4))))
    model.decoder.load_state_dict(other.state_dict())
    select = rule.at(0, threshold=3.8, drop_rate=0.7).bind(TOKENS.flatten(), PLACES.flatten())
    output = model(TOKENS, TOKENS, PLACES, None, select)
    with torch.no_grad():
        ours, base = (part(TOKENS, input_pos=PLACES).double().log_softmax(-1) for part in (model.decoder, model.base))
    kl = (base.exp() * (base - ours)).sum(-1).flatten()
    weight = {"entropy": output.keep.double(), "soft": output.weights.double(), "dft": torch.ones(kl.numel())}[mode]
    count = getattr(output, rule.normalizer)
    mean = (output.loss_sum - (output.nll * output.weights).sum()) / count
    assert float(mean.detach()) == pytest.approx(float((kl * weight).sum() / weight.sum()), rel=1e-4)


def test_early_stopping_and_best(train):
    # A learning rate this high makes validation worse at once: the first epoch stays the best.
    run = train("optimizer.lr=0.5", "epochs=8", "validation.early_stopping_patience=2", "checkpoint.keep_last=1")
    record = json.loads((run / "run.json").read_text())
    values = [row["nll"] for row in lines(run / "validation.jsonl")][1:]
    best = int(np.argmin(values))
    assert record["exit"] == "stopped_early"
    assert len(values) == best + 3 < 8
    assert record["summary"]["best_value"] == min(values)
    assert (run / "best").readlink().name == f"step_{6 * (best + 1)}"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(
        {f"step_{6 * (best + 1)}", f"step_{6 * len(values)}"}
    )


@pytest.mark.parametrize("select", ["entropy", "soft", "dft"])
def test_nonfinite_steps_stop_with_the_samples_named_or_are_skipped(select, train, tmp_path):
    bad = ["optimizer.lr=1e30", "clip_grad_norm=null", "optimizer._component_=torch.optim.SGD"]
    bad += [f"entrodrop.select={select}", "entrodrop.preset=constant"]
    with pytest.raises(TrainingFailure, match=r"not finite at step \d+ .*sample ids \[\d+.*on_nonfinite=skip"):
        train(*bad)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exit"] == "failed"
    run = train(*bad, "on_nonfinite=skip", name="skipping")
    assert json.loads((run / "run.json").read_text())["summary"]["skipped_steps"] > 0


def test_training_is_deterministic(train):
    settings = ["model.hidden_dropout=0.2", "regularization.neftune_noise_alpha=5", "entrodrop.site=both"]
    first, second = (lines(train(*settings, name=name) / "metrics.jsonl") for name in ("a", "b"))
    other = lines(train(*settings, "seed=1", name="c") / "metrics.jsonl")
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert [row["loss"] for row in first] != [row["loss"] for row in other]


def test_without_validation_data_the_last_checkpoint_is_what_there_is(train):
    run = train("data.validation=null", "data.validation_fraction=0", f"seed={2**62}")
    assert not (run / "validation.jsonl").exists() and not (run / "best").exists()
    assert (run / "last" / "model.safetensors").exists()


def test_a_torchtune_metric_logger_gets_the_metrics(train, tmp_path):
    logger = "metric_logger={_component_: torchtune.training.metric_logging.DiskLogger, log_dir: %s}" % (
        tmp_path / "logs"
    )
    run = train(logger)
    logged = next((tmp_path / "logs").glob("*.txt")).read_text()
    assert logged.count("kept_fraction:") == len(lines(run / "metrics.jsonl"))


@pytest.mark.parametrize("select", ["eaft_axolotl", "soft", "entropy"])
def test_the_dry_run_shows_the_weights_of_the_loss_and_leaves_nothing_behind(select, lively_model, tiny_data, tmp_path):
    logger = "metric_logger={_component_: torchtune.training.metric_logging.DiskLogger, log_dir: %s}" % (
        tmp_path / "logs"
    )
    rule = [f"entrodrop.select={select}", "entrodrop.threshold={nats: 3.8}", "entrodrop.drop_rate=0.7"]
    config = load_config(TINY, overrides(lively_model, tiny_data, tmp_path / "run", *rule, logger))
    plan = preflight(config)
    run = build(config, World(0, 1, torch.device("cpu")))
    batch = collate(run.schedule.batch(0).rows, run.pad_id)
    run.dropper.begin_step(run.total_steps - 1, plan["preview"][0]["epoch"])
    output = run.model(batch.tokens, batch.labels, batch.positions, batch.mask, run.dropper.select(batch))
    targets = batch.labels.flatten() != -100
    shown = [token for sample in plan["preview"] for token in sample["tokens"]]
    for key, expected in (("weight", output.weights), ("entropy", output.entropy)):
        assert [token[key] for token in shown] == pytest.approx(expected[targets].tolist(), rel=1e-5), key
    assert not (tmp_path / "logs").exists() and not (tmp_path / "run").exists()


def test_a_metric_logger_that_does_not_exist_is_refused_by_the_dry_run_too(lively_model, tiny_data, tmp_path):
    logger = "metric_logger._component_=torchtune.training.metric_logging.NoLogger"
    with pytest.raises(UserError, match=r'"metric_logger" = .*NoLogger cannot be built'):
        preflight(load_config(TINY, overrides(lively_model, tiny_data, tmp_path, logger)))


def test_auto_is_cuda_or_the_cpu(monkeypatch):
    for found, expected in (("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=found, **_: torch.device(found))
        assert pick_device("auto").type == expected
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    with pytest.raises(UserError, match='device = "mps" is not available'):
        pick_device("mps")


def test_a_tilde_in_output_dir_is_the_home_folder(lively_model, tiny_data):
    config = load_config(TINY, overrides(lively_model, tiny_data, Path("~/runs/first")))
    assert config.output_dir == Path.home() / "runs" / "first"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=mps", r'"device" = .mps.'),
        ("optimizer._component_=torch.optim.Adamw", r'"optimizer" = torch.optim.Adamw cannot be built'),
        ("optimizer._component_=torch.optim.LBFGS", r'"optimizer" = torch.optim.LBFGS: .*needs a closure'),
        ("optimizer.learning_rate=1", r'"optimizer" = torch.optim.AdamW cannot be built.*learning_rate'),
        ("entrodrop.drop_rate=1.5", r'"entrodrop" .*drop_rate = 1.5: must be in \[0, 1\]'),
        ("entrodrop.preset=rampp", r'preset = "rampp": choose from'),
        ("entrodrop.select=dft entrodrop.site=input", r'site "input" needs select entropy, fitted, random, loss'),
        ("entrodrop.select=soft entrodrop.source=base", r'select "soft" knows no source or scope'),
        (
            "entrodrop.scope=sample entrodrop.threshold.nats=0.5",
            r'scope "sample" needs threshold.quantile',
        ),
        (
            "entrodrop.full_at_gap=0.5 data.validation=null data.validation_fraction=0",
            r'"entrodrop.full_at_gap" needs validation data',
        ),
        ("data.train=nowhere.jsonl", r"nowhere.jsonl"),
        ("model.path=nowhere", r"nowhere.*does not exist"),
        ("epoch=3", r'unknown key "epoch". Did you mean "epochs"?'),
        ("optimizer_in_bwd=true", r"optimizer_in_bwd needs clip_grad_norm=null"),
        ("optimizer_in_bwd=true gradient_accumulation_steps=2", r"needs gradient_accumulation_steps=1"),
        ("optimizer_in_bwd=true clip_grad_norm=null on_nonfinite=skip", r"needs on_nonfinite=stop"),
        ("device=cuda", r'device = "cuda" is not available here'),
        (
            "data.validation=null data.validation_fraction=0 validation.early_stopping_patience=2",
            r"early_stopping_patience.*needs validation data",
        ),
    ],
)
def test_mistakes_are_named_before_training(train, override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(*override.split())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["optimizer_in_bwd=true", "clip_grad_norm=null"], "optimizer_in_bwd works on one process, this launch has 2"),
        (["optimizer._component_=torchao.optim.AdamW8bit"], "AdamW8bit: torchao cannot .* this launch has 2 processes"),
    ],
)
def test_what_does_not_shard_is_refused_before_training(more, message, lively_model, tiny_data, tmp_path):
    config = load_config(TINY, overrides(lively_model, tiny_data, tmp_path, *more))
    with pytest.raises(UserError, match=message):
        build(config, World(0, 2, torch.device("cpu")))


def test_memory_that_is_not_there_is_explained(lively_model, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "run_training", lambda *_: torch.empty(2**50))
    settings = overrides(lively_model, tiny_data, tmp_path)
    monkeypatch.setattr("sys.argv", ["full_finetune", "--config", str(TINY), *settings])
    assert launch.launch("full_finetune", check=lambda config: None) == launch.EXIT_FAILED
    message = capsys.readouterr().err
    assert re.search(r"^error: out of memory \(.*batch_size.*activation_checkpointing.*max_length", message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("full_finetune", ["optimizer._component_=torchao.optim.AdamW8bit"]),
        ("lora_finetune", ["adapter.type=qlora", "dtype=bf16"]),
    ],
)
def test_quantised_states_survive_a_resume(recipe, more, tiny_data, tmp_path):
    """8-bit optimizer moments and a 4-bit base: large enough layers that quantisation applies."""
    model = tiny_model_dir(
        tmp_path / "model", hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=2
    )

    def run(name, *also):
        config = load_config(TINY, overrides(model, tiny_data, tmp_path / name, *more, *also))
        assert run_training(recipe, config) == 0
        return journal(tmp_path / name)

    whole = run("whole")
    run("halves", "max_steps=7")
    assert run("halves", "resume=true") == whole
