"""Two processes on CPU (gloo, FSDP2) give the masks and losses of one."""

import subprocess
import time

import psutil
import pytest

from entrodrop_tune.training.launch import load_config, run_training
from tests.training.runs import ADAPTER, TINY, command, environment, lines, overrides, tune

CASES = {"full": ("full_finetune", []), "lora": ("lora_finetune", ADAPTER)}


@pytest.mark.slow
@pytest.mark.parametrize("site", ["loss", "both"])
@pytest.mark.parametrize("case", CASES)
def test_one_and_two_processes_agree(case, site, lively_model, tiny_data, tmp_path):
    recipe, more = CASES[case]
    # 12 rows in global batches of 8: the last batch of an epoch leaves the second process without rows of its own.
    more = [*more, "epochs=3", f"entrodrop.site={site}", "entrodrop.drop_rate=0.7", "batch_size=4"]
    # AdamW's first steps move every weight by the sign of its gradient, rounding noise included; eps keeps noise small.
    more += ["optimizer.lr=0.001", "optimizer.eps=0.001"]
    settings = overrides(lively_model, tiny_data, tmp_path / "one", *more, "gradient_accumulation_steps=2")
    assert run_training(recipe, load_config(TINY, settings)) == 0
    done = tune(recipe, *overrides(lively_model, tiny_data, tmp_path / "two", *more), processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["kept_fraction"] for row in one] == [row["kept_fraction"] for row in two]
    assert [row["threshold"] for row in one[1:]] == pytest.approx([row["threshold"] for row in two[1:]], rel=1e-4)
    assert min(row["kept_fraction"] for row in one) < 0.9
    for key in ("grad_norm", "loss", "nll_all"):
        assert [row[key] for row in one] == pytest.approx([row[key] for row in two], rel=1e-4), key
    one, two = (lines(tmp_path / name / "validation.jsonl") for name in ("one", "two"))
    assert [row["nll"] for row in one] == pytest.approx([row["nll"] for row in two], rel=1e-4)


@pytest.mark.slow
def test_mixed_precision_and_a_frozen_base_shard_too(lively_model, tiny_data, tmp_path):
    more = ["epochs=1", "dtype=bf16-mixed", "regularization.kl_to_base=0.1", "batch_size=4", "entrodrop.site=both"]
    settings = overrides(lively_model, tiny_data, tmp_path / "one", *more, "gradient_accumulation_steps=2")
    assert run_training("full_finetune", load_config(TINY, settings)) == 0
    done = tune("full_finetune", *overrides(lively_model, tiny_data, tmp_path / "two", *more), processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    # FSDP2 casts weights once where autocast casts them at each use: equal to bf16's rounding.
    assert [row["nll_all"] for row in one] == pytest.approx([row["nll_all"] for row in two], rel=0.02)


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_the_run_can_be_resumed(lively_model, tiny_data, tmp_path):
    run = tmp_path / "run"
    settings = overrides(lively_model, tiny_data, run, "epochs=500", "checkpoint.keep_last=1", "resume=true")
    launcher = subprocess.Popen(command("full_finetune", *settings, processes=2), env=environment())
    deadline = time.monotonic() + 120
    while not (run / "last").exists() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    victim = max((p for p in ranks if p.environ().get("RANK") == "1"), key=lambda p: p.pid)
    victim.kill()
    assert launcher.wait(timeout=60) != 0
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks)
    saved = int((run / "last").readlink().name.removeprefix("step_"))
    more = [*settings, f"max_steps={saved + 6}"]
    assert tune("full_finetune", *more, processes=2).returncode == 0
    assert lines(run / "metrics.jsonl")[-1]["step"] == saved + 6
