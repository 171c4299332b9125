"""Evaluations of tiny models end to end: adapters, caching, resuming, settings, the command."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrodrop_tune.cli.main import main
from entrodrop_tune.errors import UserError
from entrodrop_tune.evaluation import runner
from entrodrop_tune.evaluation.cache import TaskCache
from entrodrop_tune.evaluation.comparison import compare_evaluations
from entrodrop_tune.evaluation.harness import Harness, Settings, task_folder
from entrodrop_tune.evaluation.models import count_parameters, resolve_model
from entrodrop_tune.evaluation.render import cost_table
from entrodrop_tune.evaluation.results import load_results, save_results
from entrodrop_tune.evaluation.runner import evaluate
from entrodrop_tune.evaluation.suites import SUITES, suite_tasks
from entrodrop_tune.evaluation.task_data import load_rows
from entrodrop_tune.evaluation.training_cost import training_cost
from tests.evaluation.builders import evaluation
from tests.tiny import tiny_model_dir

CPU = Settings(dtype="fp32", device="cpu", batch_size="4")
FAST = "entrodrop_piqa,entrodrop_gsm8k_nll"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("harness") / "model", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """A LoRA adapter with weights that change the output, and the same model merged."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(folder / "adapter")
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "merged")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``entrodrop ARGUMENTS`` in this process: (exit code, standard output, standard error)."""

    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["entrodrop", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return run_command


def run(path, suite=FAST, limit=3, settings=CPU, cache=None):
    return evaluate(resolve_model(path), suite, suite_tasks(suite, limit), settings, cache)


def values(results):
    return {(task, metric): summary.value for task, t in results.tasks.items() for metric, summary in t.metrics.items()}


@pytest.mark.parametrize("chat", ["always", "never"])
def test_answer_likelihood_is_transformers(model, chat):
    """Bits a byte of the first GSM8K answer by hand. lm-eval scores the line end before the answer with the answer."""
    results = run(
        model, "entrodrop_gsm8k_nll", limit=1, settings=Settings(dtype="fp32", device="cpu", chat_template=chat)
    )
    (item,) = results.items
    row = load_rows("gsm8k", "bundled")[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    context = row["question"]
    if chat == "always":
        turn = [{"role": "user", "content": row["question"]}]
        context = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True).rstrip()
    prompt = tokenizer(context, add_special_tokens=False).input_ids
    whole = tokenizer(context + "\n" + row["answer"], add_special_tokens=False).input_ids
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    logits = network(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(whole[len(prompt) :]), reduction="sum").item()
    assert item.metrics["answer_nll"] == pytest.approx(nll, rel=1e-5)
    assert item.metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(row["answer"].encode()), rel=1e-5)
    assert results.tasks["entrodrop_gsm8k_nll"].chat_template == (chat == "always")


def test_adapter_scores_as_its_merged_model_and_unlike_its_base(model, adapter):
    unmerged, merged, base = values(run(adapter / "adapter")), values(run(adapter / "merged")), values(run(model))
    assert unmerged == pytest.approx(merged, rel=1e-4)
    key = ("entrodrop_gsm8k_nll", "bits_per_byte")
    assert abs(unmerged[key] - base[key]) > 1e-3


def test_model_source(model, adapter, tmp_path):
    source = resolve_model(adapter / "adapter")
    assert (source.base, source.adapter) == (model, adapter / "adapter")
    trained = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert count_parameters(resolve_model(model)) == trained
    lora = 2 * ((4 * 32 + 32 * 4) + (4 * 32 + 16 * 4))  # two layers, rank 4: q_proj 32 to 32, v_proj 32 to 16
    assert count_parameters(source) == trained + lora
    hashes = {resolve_model(p).hash for p in (model, adapter / "adapter", adapter / "merged")}
    assert len(hashes) == 3
    for path, message in [(tmp_path / "none", "no model folder"), (tmp_path, "neither config.json")]:
        with pytest.raises(UserError, match=message):
            resolve_model(path)
    config = json.loads((adapter / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/elsewhere"}))
    with pytest.raises(UserError, match=r"org/elsewhere.*--base"):
        resolve_model(tmp_path)
    assert resolve_model(tmp_path, base=model).base == model


def test_a_changed_weight_changes_the_hash(model, tmp_path):
    before = resolve_model(model).hash
    network = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        network.model.embed_tokens.weight[0, 0] += 1e-3
    network.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    assert resolve_model(tmp_path).hash != before


def test_results_survive_writing_and_reading(model, tmp_path):
    results = run(model)
    save_results(results, tmp_path)
    again = load_results(tmp_path)
    assert again.to_dict() == results.to_dict() and again.items == results.items
    assert load_results(tmp_path / "eval.json").items == results.items
    data = json.loads((tmp_path / "eval.json").read_text())
    assert data["schema"] == 1
    assert data["tasks"]["entrodrop_piqa"]["metrics"]["acc"].keys() == {
        "value", "ci_low", "ci_high", "n", "higher_is_better", "chance"
    }  # fmt: skip
    assert data["settings"]["limits"] == {"entrodrop_piqa": 3, "entrodrop_gsm8k_nll": 3}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "eval.json").unlink(), "no evaluation at"),
        (lambda d: (d / "eval.json").write_text("{"), "eval.json is malformed"),
        (lambda d: (d / "eval.json").write_text('{"schema": 2}'), "malformed: schema"),
        (lambda d: (d / "items.jsonl").unlink(), "no items.jsonl"),
        (lambda d: (d / "items.jsonl").write_text('{"task": "x"}\n'), "items.jsonl line 1 is malformed: doc_id"),
    ],
)
def test_malformed_results_are_refused(model, tmp_path, damage, message):
    save_results(run(model, "entrodrop_piqa", limit=1), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_results(tmp_path)


def test_cache_saves_the_model_and_depends_on_what_matters(model, adapter, tmp_path, monkeypatch):
    cache = TaskCache(tmp_path)
    first = run(model, cache=cache)
    calls = []
    original = Harness.run
    monkeypatch.setattr(
        Harness, "run", lambda self, task, *rest: calls.append(task.name) or original(self, task, *rest)
    )
    again = run(model, cache=cache)
    assert calls == [] and again.items == first.items and values(again) == values(first)
    run(model, cache=cache, limit=2)
    assert calls == ["entrodrop_piqa", "entrodrop_gsm8k_nll"]
    run(adapter / "merged", "entrodrop_piqa", cache=cache)
    run(model, "entrodrop_piqa", settings=Settings(dtype="bf16", device="cpu", batch_size="4"), cache=cache)
    run(
        model,
        "entrodrop_gsm8k_nll",
        settings=Settings(dtype="fp32", device="cpu", batch_size="4", chat_template="never"),
        cache=cache,
    )
    assert calls[2:] == ["entrodrop_piqa", "entrodrop_piqa", "entrodrop_gsm8k_nll"]


def test_the_record_holds_what_auto_stood_for(model):
    results = run(model, "entrodrop_piqa", limit=1, settings=Settings(device="cpu", dtype="fast"))
    assert results.settings["dtype"] in ("bf16", "fp32") and results.settings["device"] == "cpu"
    assert results.settings["batch_size"] == "8" and results.settings["data"] == "bundled"


def test_a_damaged_cache_file_is_computed_again(model, tmp_path):
    cache = TaskCache(tmp_path)
    first = run(model, "entrodrop_piqa", cache=cache)
    (file,) = tmp_path.glob("*/*.json")
    file.write_text(file.read_text()[:-20])
    assert values(run(model, "entrodrop_piqa", cache=cache)) == values(first)


@pytest.mark.parametrize("suite", ["entrodrop_piqa", "entrodrop_gsm8k_nll"])
def test_a_model_of_nan_is_refused_and_leaves_nothing(command, model, tmp_path, suite):
    network = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        network.model.norm.weight[0] = math.nan
    network.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "broken")
    options = ["--suite", suite, "--limit", 2, "--cache", tmp_path / "cache", "--device", "cpu"]
    code, output, errors = command("eval", tmp_path / "broken", *options, "--output", tmp_path / "out", "--json")
    assert code == 2 and output == ""
    assert errors.splitlines()[-1].startswith(f"error: {suite}, item 0: ")
    assert "non-finite likelihoods" in errors.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert [file for file in tmp_path.glob("cache/**/*") if file.is_file()] == []


@pytest.mark.parametrize("bad", ["NaN", "Infinity"])
@pytest.mark.parametrize("name", ["eval.json", "items.jsonl"])
def test_scores_that_are_no_numbers_are_refused_when_read(tmp_path, name, bad):
    save_results(evaluation("m", {"t": {"scores": [0.125, 0.125], "metric": "bits_per_byte"}}), tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text().replace("0.125", bad))
    with pytest.raises(UserError, match=rf"{name}.* malformed: .*bits_per_byte.*finite number"):
        load_results(tmp_path)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(command, model, tmp_path):
    """Killed after its first task is stored; the second start takes that task from the cache."""
    arguments = ["eval", str(model), "--dtype", "fp32", "--device", "cpu", "--suite", "entrodrop_piqa,entrodrop_mmlu"]
    arguments += ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    process = subprocess.Popen(
        [sys.executable, "-m", "entrodrop_tune.cli.main", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (stored := list(tmp_path.glob("cache/*/entrodrop_piqa-*.json"))) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    before = stored[0].stat().st_mtime_ns
    assert command(*arguments)[0] == 0
    assert stored[0].stat().st_mtime_ns == before
    assert set(load_results(tmp_path / "out").tasks) == {"entrodrop_piqa", "entrodrop_mmlu"}
    assert list(tmp_path.glob("cache/*/*.requests*")) == []


def test_runs_with_the_same_settings_agree(model):
    suite = "entrodrop_gsm8k_chat,entrodrop_hellaswag"
    assert run(model, suite, limit=1).items == run(model, suite, limit=1).items


def test_code_is_not_executed_without_consent(model):
    results = run(model, "entrodrop_mbpp_chat", limit=1)
    assert results.tasks == {} and "--allow-code-execution" in results.skipped["entrodrop_mbpp_chat"]


def test_code_is_skipped_with_the_reason_where_no_sandbox_works(model, monkeypatch):
    def refuse():
        raise UserError("no sandbox here")

    monkeypatch.setattr(runner, "require_working_sandbox", refuse)
    results = run(model, "entrodrop_mbpp_chat", limit=1, settings=Settings(device="cpu", allow_code_execution=True))
    assert results.skipped == {"entrodrop_mbpp_chat": "no sandbox here"}


@pytest.mark.slow
def test_stock_command_line_runs_the_groups(model):
    """``lm_eval --include_path``, as a user without our command would."""
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={model}",
        "--device",
        "cpu",
    ]
    command += ["--include_path", str(task_folder()), "--tasks", "entrodrop_math,entrodrop_general,entrodrop_medical"]
    command += ["--limit", "1", "--gen_kwargs", "max_gen_toks=4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for task in ("gsm8k_nll", "competition_math", "mmlu", "ifeval", "wikitext", "pubmedqa"):
        assert f"entrodrop_{task}" in done.stdout


def test_every_task_file_loads_and_declares_what_we_read(model):
    harness = Harness(resolve_model(model), CPU)
    names = set(harness._manager.all_subtasks) - {"entrodrop_arc_challenge"}
    assert names >= {task.name for suite in SUITES.values() for task in suite} and len(names) >= 19
    for name in names:
        prepared = harness.prepare(name)
        metrics = prepared.task.higher_is_better()
        assert prepared.metadata["primary"].split(",")[0] in metrics, name
        assert set(prepared.metadata.get("chance", {})) <= set(metrics), name
        assert "version" in prepared.metadata, name


def test_unknown_names_are_met_with_the_nearest(model):
    with pytest.raises(UserError, match='Did you mean "general"'):
        suite_tasks("generall")
    with pytest.raises(UserError, match='Did you mean "entrodrop_piqa"'):
        Harness(resolve_model(model), CPU).prepare("entrodrop_piqaa")


@pytest.mark.parametrize("suite", ["quick,math", "math,quick", "entrodrop_gsm8k_nll,quick,math"])
def test_joined_suites_are_never_shorter_than_each_alone(suite):
    joined = {task.name: task.limit for task in suite_tasks(suite)}
    assert all(joined[task.name] is None for task in SUITES["math"])
    assert joined["entrodrop_piqa"] == 64  # in quick alone
    assert {task.limit for task in suite_tasks(suite, limit=5)} == {5}


def test_command_prints_json_alone(command, model, tmp_path):
    options = ["--suite", "entrodrop_piqa", "--limit", 1, "--output", tmp_path, "--no-cache", "--device", "cpu"]
    code, output, _ = command("eval", model, *options, "--json")
    assert code == 0
    assert json.loads(output) == json.loads((tmp_path / "eval.json").read_text())


def test_compare_command(command, model, adapter, tmp_path):
    for name, path in (("base", model), ("tuned", adapter / "merged")):
        save_results(run(path), tmp_path / name)
    code, output, _ = command("compare", tmp_path / "base", tmp_path / "tuned", "--output", tmp_path / "out")
    assert code == 0 and "Retention index" in output
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"comparison.json", "comparison.md", "comparison.html", "tradeoff.png"}
    _, output, _ = command("compare", tmp_path / "base", tmp_path / "tuned", "--json")
    assert json.loads(output)[0]["schema"] == 1


def test_cost_of_the_run_a_checkpoint_lies_in(model, tmp_path):
    """A run folder by hand; evaluated through its ``best`` link, found again from the evaluation."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step_4"
    shutil.copytree(model, checkpoint)
    (tmp_path / "run" / "best").symlink_to("checkpoints/step_4")
    record = {
        "config": {"adapter": {"type": "lora"}},
        "parameters": {"total": 1000, "trainable": 10},
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:02:00+00:00",
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    steps = [{"step": speed, "tokens_per_second": speed, "peak_memory_bytes": 1 << 20} for speed in (10, 30, 20)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"half')
    results = run(tmp_path / "run", "entrodrop_piqa", limit=1)
    comparison = compare_evaluations(results, results)
    cost = comparison.cost
    assert (cost.method, cost.trainable, cost.seconds) == ("lora", 10, 120.0)
    assert (cost.tokens_per_second, cost.peak_memory_bytes) == (20, 1 << 20)
    assert cost.checkpoint_bytes == sum(f.stat().st_size for f in model.iterdir() if f.is_file())
    _, rows = cost_table([comparison])
    assert "10 (1 %)" in rows[0] and "2.0 min" in rows[0]
    assert training_cost(model) is None


def test_chat_template_is_recorded_and_required_when_asked_for(model, tmp_path):
    shutil.copytree(model, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    plain = run(tmp_path / "plain", "entrodrop_gsm8k_nll", limit=1)
    assert not plain.tasks["entrodrop_gsm8k_nll"].chat_template and plain.settings["chat_template_hash"] is None
    assert run(model, "entrodrop_piqa", limit=1).settings["chat_template_hash"]
    with pytest.raises(UserError, match="no chat template"):
        run(tmp_path / "plain", "entrodrop_piqa", settings=Settings(device="cpu", chat_template="always"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "nowhere"], 'no model folder "nowhere"'),
        (["eval", "{model}", "--suite", "quik"], 'Did you mean "quick"'),
        (["eval", "{model}", "--dtype", "int8"], '--dtype is "int8"'),
        (["eval", "{model}", "--device", "gpu"], '--device is "gpu"'),
        (["eval", "{model}", "--batch-size", "many"], '--batch-size is "many"'),
        (["eval", "{model}", "--suite", "entrodrop_arc_challenge"], "arc_challenge is not bundled"),
        (["eval", "{model}", "--suite", "entrodrop_piqa", "--data", "/nowhere"], "/nowhere"),
        (["eval", "{model}", "--model-args", "nonsense=1", "--limit", "1", "--no-cache"], "cannot load"),
        (["compare", "{model}", "{model}"], "neither eval.json"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(command, model, arguments, message):
    code, _, errors = command(*[argument.format(model=model) for argument in arguments])
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: ") and message in errors
