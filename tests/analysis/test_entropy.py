"""Entropy profile and gradient share on a tiny model, against transformers and plain autograd."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from entrodrop_tune.analysis import entropy_command
from entrodrop_tune.analysis.entropy_command import analyse
from entrodrop_tune.analysis.entropy_profile import Setting, class_table, describe, profile_domain, read_samples
from entrodrop_tune.analysis.gradient_share import entropy_ranges, gradient_share, share_below, shares
from entrodrop_tune.analysis.model_source import load_subject
from entrodrop_tune.cli.catalog import configs
from entrodrop_tune.cli.main import app
from entrodrop_tune.errors import UserError
from entrodrop_tune.method import TokenSelector
from entrodrop_tune.training.launch import load_config
from tests.tiny import tiny_model_dir

SETTING = Setting(quantile=0.5, nats=None, drop_rate=0.8, seed=3, epoch=2)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    # Larger initial weights: entropies that differ, as a trained model's do.
    return load_subject(tiny_model_dir(tmp_path_factory.mktemp("m") / "model", initializer_range=0.4), device="cpu")


@pytest.fixture(scope="module")
def samples(subject, tiny_data):
    return read_samples(tiny_data, subject.tokenizer, 6)


@pytest.fixture(scope="module")
def domain(subject, samples):
    return profile_domain(subject, "numbers", samples, SETTING, batch_size=4)


@pytest.fixture(scope="module")
def reference(subject, samples):
    """(transformers model in float64, [(tokens [T], target positions)])."""
    model = AutoModelForCausalLM.from_pretrained(subject.source.base, dtype=torch.float64)
    return model, [
        (torch.from_numpy(s.tokens.astype(np.int64)), [t for t in range(1, len(s)) if s.is_target[t]]) for s in samples
    ]


def losses(model, tokens, places):
    logits = model(tokens[None]).logits[0]
    logp = logits.log_softmax(-1)
    before = torch.tensor(places) - 1
    entropy = -(logp.exp() * logp).sum(-1)[before]
    return entropy, -logp[before, tokens[places]]


def test_entropy_and_nll_are_those_of_transformers(domain, reference):
    model, rows = reference
    with torch.no_grad():
        parts = [losses(model, tokens, places) for tokens, places in rows]
    for column, index in (("entropy", 0), ("nll", 1)):
        expected = torch.cat([part[index] for part in parts]).numpy()
        np.testing.assert_allclose(domain.tokens[column], expected, atol=2e-4)


def test_text_and_position_are_the_predicted_tokens(domain, samples, subject):
    row = domain.tokens[domain.tokens["sample"] == 2].iloc[5]
    assert row["text"] == subject.tokenizer.decode([int(samples[2].tokens[row["position"]])])
    assert samples[2].is_target[row["position"]]


def test_struck_out_tokens_are_those_training_would_drop(domain, samples):
    threshold = SETTING.threshold(domain.tokens["entropy"])
    step = TokenSelector("entropy", seed=3).at(epoch=2, threshold=threshold, drop_rate=0.8)
    ids = torch.tensor([samples[index].id for index in domain.tokens["sample"]])
    # Training's coin belongs to the position that predicts, one before the token.
    positions = torch.tensor(domain.tokens["position"].to_numpy()) - 1
    entropy = torch.tensor(domain.tokens["entropy"].to_numpy())
    keep = step.bind(ids, positions)(entropy, entropy, torch.arange(len(ids))).numpy()
    dropped = (domain.tokens["entropy"] < threshold) & (domain.tokens["coin"] < 0.8)
    np.testing.assert_array_equal(~keep, dropped)
    assert 0 < dropped.mean() < 0.5


def test_description_adds_up(domain):
    described = describe(domain, SETTING)
    assert sum(described["histogram"]["counts"]) == described["tokens"] == len(domain.tokens)
    assert sum(row["tokens"] for row in described["classes"]) == described["tokens"]
    assert described["setting"]["quantile"] == pytest.approx(0.5, abs=0.02)
    half = next(row for row in described["thresholds"] if row["quantile"] == 0.5)
    assert half["nats"] == pytest.approx(float(np.median(domain.tokens["entropy"])))
    assert described["quantiles"]["0.000"] == domain.tokens["entropy"].min()
    json.dumps(described, allow_nan=False)


def test_class_table_counts_what_is_dropped(domain):
    dropped = domain.tokens["token_class"] == "number"
    table = class_table(domain.tokens, 1.0, dropped).set_index("token_class")
    assert table.loc["number", "dropped"] == 1 and table.drop("number")["dropped"].max() == 0


def test_the_ranges_part_the_tokens_and_meet_the_threshold(domain):
    entropy = domain.tokens["entropy"].to_numpy()
    threshold = SETTING.threshold(domain.tokens["entropy"])
    ranges = entropy_ranges(entropy, SETTING, threshold)
    inside = np.stack([(entropy >= part.low) & (entropy < part.high) for part in ranges])
    assert (inside.sum(0) == 1).all()
    for part, members in zip(ranges, inside, strict=True):
        assert (entropy[members] < threshold).all() == (part.keep == pytest.approx(0.2))


@pytest.mark.parametrize("scope", ["hidden", "head", "model"])
def test_gradient_products_agree_with_autograd_in_float64(subject, domain, reference, scope):
    model, rows = reference
    result = gradient_share(subject, domain, SETTING, samples=3, scopes=(scope,))
    parameters = [model.lm_head.weight] if scope == "head" else list(model.parameters())
    gradients = []
    for part in result["ranges"]:
        high = np.inf if part["high"] is None else part["high"]
        total = [torch.zeros_like(p) for p in parameters]
        hidden_parts = []
        for index, (tokens, places) in enumerate(rows[:3]):
            # Ranges by the measured entropies, so that a token at an edge falls on the same side here.
            measured = domain.tokens.loc[domain.tokens["sample"] == index, "entropy"].to_numpy()
            chosen = torch.from_numpy((measured >= part["low"]) & (measured < high))
            hidden = model.model(tokens[None]).last_hidden_state[0]
            hidden = hidden.detach().requires_grad_() if scope in ("hidden", "head") else hidden
            logp = (hidden @ model.lm_head.weight.T).log_softmax(-1)
            nll = -logp[torch.tensor(places) - 1, tokens[places]]
            wanted = [hidden] if scope == "hidden" else parameters
            found = torch.autograd.grad(nll[chosen].sum(), wanted)
            if scope == "hidden":
                hidden_parts.append(found[0].flatten())
            else:
                total = [a + b for a, b in zip(total, found, strict=True)]
        gradients.append(torch.cat(hidden_parts if scope == "hidden" else [t.flatten() for t in total]))
    stacked = torch.stack(gradients)
    expected = shares((stacked @ stacked.T).numpy(), [part["keep_probability"] for part in result["ranges"]])
    found = result["scopes"][scope]
    for key in ("norm", "before", "after"):
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-3, atol=2e-4)
    assert sum(found["before"]) == pytest.approx(1) and sum(found["after"]) == pytest.approx(1)


def test_dropping_all_of_a_range_leaves_it_no_share(subject, domain):
    everything = Setting(quantile=0.5, nats=None, drop_rate=1.0)
    result = gradient_share(subject, domain, everything, samples=3, scopes=("head",))
    assert share_below(result, "head", "after") == pytest.approx(0, abs=1e-12)
    assert share_below(result, "head", "before") > 0.01


def test_an_adapter_gives_the_profile_of_its_merged_model(tiny_model, tiny_data, tmp_path):
    from entrodrop_tune.models import AdapterConfig, ModelConfig, load_model, save_adapter, save_merged

    adapter = AdapterConfig(type="lora", rank=4, alpha=8)
    torch.manual_seed(0)
    decoder = load_model(ModelConfig(path=str(tiny_model)), adapter)
    state = {k: v + 0.05 * torch.randn_like(v) if "lora_b" in k else v for k, v in decoder.state_dict().items()}
    save_adapter(state, adapter, tiny_model, tmp_path / "adapter")
    save_merged(state, adapter, tiny_model, tmp_path / "merged")
    entropies = []
    for folder in ("adapter", "merged"):
        subject = load_subject(tmp_path / folder, device="cpu")
        samples = read_samples(tiny_data, subject.tokenizer, 3)
        entropies.append(profile_domain(subject, "x", samples, SETTING).tokens["entropy"])
    np.testing.assert_allclose(entropies[0], entropies[1], atol=1e-4)


def run(*arguments):
    return CliRunner().invoke(app, ["entropy", *map(str, arguments)], catch_exceptions=False)


def test_command_writes_page_and_numbers_for_two_domains(tiny_model, tiny_data, tmp_path):
    result = run(
        tiny_model, tiny_data / "train.jsonl", tiny_data / "validation.jsonl", "--samples", 4, "--gradient-samples", 2,
        "--device", "cpu", "--output", tmp_path, "--json",
    )  # fmt: skip
    profile = json.loads((tmp_path / "entropy.json").read_text())
    assert json.loads(result.stdout[result.stdout.index("{") :]) == profile
    assert [domain["name"] for domain in profile["domains"]] == ["train", "validation"]
    page = (tmp_path / "entropy.html").read_text()
    assert page.count('class="t e') > 50 and "dropped" in page
    assert (tmp_path / "entropy.png").exists()


def test_a_config_gives_the_setting(tiny_model, tiny_data, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"output_dir: x\nmodel: {{path: {tiny_model}}}\ndata: {{train: {tiny_data}/train.jsonl}}\nepochs: 1\n"
        "batch_size: 1\noptimizer: {_component_: torch.optim.AdamW}\n"
        "entrodrop: {threshold: {nats: 1.5}, drop_rate: {shape: linear, start: 0.1, end: 0.7}}\n"
    )
    run(
        tiny_model, tiny_data, "--config", config, "--gradient", "none", "--samples", 2, "--device", "cpu",
        "--output", tmp_path,
    )  # fmt: skip
    setting = json.loads((tmp_path / "entropy.json").read_text())["setting"]
    assert (setting["nats"], setting["quantile"], setting["drop_rate"]) == (1.5, None, 0.7)


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [
        ("threshold: {quantile: {shape: linear, start: 0.2, end: 0.7}}, drop_rate: 0.5", (0.7, None, 0.5)),
        # 0.27 of the tokens at the start, 0.36 in between, 0.35 at the end.
        (
            "threshold: {quantile: {shape: linear, start: 0.3, end: 0.7}},"
            " drop_rate: {shape: linear, start: 0.9, end: 0.5}",
            (0.6, None, 0.6),
        ),
        ("threshold: {nats: {shape: linear, start: 0.2, end: 1.5}}, drop_rate: 0.5", (None, 1.5, 0.5)),
        (
            "threshold: {nats: {shape: linear, start: 0.2, end: 1.5}},"
            " drop_rate: {shape: linear, start: 0.9, end: 0.5}",
            (None, 0.2, 0.9),
        ),
    ],
)
def test_a_config_gives_the_setting_that_drops_most(tmp_path, monkeypatch, curriculum, expected):
    """The command up to the analysis, which is taken as it is asked for."""
    config, asked = tmp_path / "c.yaml", []
    config.write_text(
        "output_dir: x\nmodel: {path: m}\ndata: {train: t.jsonl}\nepochs: 1\nbatch_size: 1\n"
        f"optimizer: {{_component_: torch.optim.AdamW}}\nentrodrop: {{{curriculum}}}\n"
    )
    monkeypatch.setattr(entropy_command, "analyse", lambda model, data, setting, **_: asked.append(setting) or {})
    run("m", "d", "--config", config, "--output", tmp_path / "out", "--json")
    (setting,) = asked
    assert (setting.quantile, setting.nats, setting.drop_rate) == expected


def test_a_config_may_leave_open_what_the_command_says(tiny_model, tiny_data, tmp_path):
    run(
        tiny_model, tiny_data, "--config", "tiny", "--gradient", "none", "--samples", 2, "--output", tmp_path / "out"
    )  # fmt: skip
    assert "path: ???" in configs()["tiny"].read_text() and (tmp_path / "out" / "entropy.json").exists()


def test_a_config_may_be_named_as_everywhere_else(tiny_model, tiny_data, tmp_path):
    run(
        tiny_model, tiny_data, "--config", "smollm2/135m_lora", "--gradient", "none", "--samples", 2, "--device", "cpu",
        "--output", tmp_path,
    )  # fmt: skip
    shipped = load_config(configs()["smollm2/135m_lora"], []).entrodrop.curriculum()
    setting = json.loads((tmp_path / "entropy.json").read_text())["setting"]
    assert setting["drop_rate"] == max(shipped.at(i / 100).drop_rate for i in range(101))
    with pytest.raises(UserError, match='Did you mean "smollm2/135m_lora"'):
        run(tiny_model, tiny_data, "--config", "smollm2/135m_lor", "--output", tmp_path)


def test_mistakes_are_refused(tiny_model, tiny_data, tmp_path):
    with pytest.raises(UserError, match="not both"):
        run(tiny_model, tiny_data, "--quantile", 0.5, "--nats", 1)
    with pytest.raises(UserError, match="no model folder"):
        run(tmp_path / "nowhere", tiny_data)
    with pytest.raises(UserError, match="nowhere"):
        run(tiny_model, tmp_path / "nowhere.jsonl", "--device", "cpu", "--output", tmp_path)
    with pytest.raises(UserError, match="names that differ"):
        run(tiny_model, tiny_data, tiny_data)


@pytest.mark.slow
def test_a_run_folder_is_followed_over_its_checkpoints(tiny_model, tiny_data, tmp_path):
    import subprocess
    import sys

    subprocess.run(
        [
            *(sys.executable, "-m", "torchtune._cli.tune", "run", "entrodrop_tune/recipes/lora_finetune"),
            *("--config", "entrodrop_tune/configs/tiny.yaml", f"output_dir={tmp_path / 'run'}"),
            f"model.path={tiny_model}",
            *(f"data.train={tiny_data}/train.jsonl", f"data.validation={tiny_data}/validation.jsonl"),
            *("adapter={type: lora, rank: 4, alpha: 8}", "epochs=3", "checkpoint.keep_last=3", "optimizer.lr=0.02"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    profile = analyse(
        tmp_path / "run", [tiny_data], SETTING, data_config=None, samples=4, gradient="none", gradient_samples=4,
        device="cpu", dtype="fp32", output=tmp_path / "out",
    )  # fmt: skip
    points = profile["over_training"]
    assert [point["epoch"] for point in points] == [0.0, 1.0, 2.0, 3.0]
    assert points[-1]["nll"] < points[0]["nll"]
    assert "Over training" in (tmp_path / "out" / "entropy.html").read_text()
