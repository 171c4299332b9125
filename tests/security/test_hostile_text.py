"""Pages made from hostile names, settings, answers and data show them as text: nothing in them runs or is fetched."""

import json
import re

import pytest

from entrodrop_tune.analysis.entropy_command import analyse
from entrodrop_tune.analysis.entropy_profile import Setting
from entrodrop_tune.analysis.report import write_report
from entrodrop_tune.analysis.runs import load_run
from entrodrop_tune.evaluation.comparison import compare_evaluations
from entrodrop_tune.evaluation.render import comparison_html
from entrodrop_tune.evaluation.results import load_results, save_results
from tests.analysis.browser import Browser, needs_browser
from tests.analysis.synthetic import make_evaluation, make_run
from tests.tiny import tiny_model_dir

pytestmark = [needs_browser, pytest.mark.slow]

RUN = "window.hacked=1"
HOSTILE = [
    f"<script>{RUN}</script>",
    f'"><img src=http://127.0.0.1:9/x.png onerror={RUN}>',
    f"'><svg onload={RUN}>",
    f"</title></style></script><script>{RUN}</script>",
    f"]]></text></svg><script>{RUN}</script>",
    f"<a href=javascript:{RUN}>link</a>",
    f"javascript:{RUN}",
    f"{{{{ cycler.__init__.__globals__.os }}}}{{% raw %}}<iframe srcdoc='<script>parent.{RUN}</script>'>",
    f"\u2028<body onload={RUN}>\u2029",
    "$\\frac{$ `<b>` & &lt;script&gt;",
]
ALL = " ".join(HOSTILE)
NAME = "<img src=x onerror=window.hacked=1>$\\frac"  # what a folder can be called


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folder with report.html, comparison.html and entropy.html, hostile through and through."""
    root = tmp_path_factory.mktemp("hostile")
    config = {"model": {"path": ALL}, "data": {"train": ALL}, "epochs": 8, ALL: {ALL: HOSTILE}, "seed": 0}
    runs = []
    for number, exit_state in enumerate(("finished", "failed")):
        path = root / str(number) / NAME
        make_run(path, recipe=ALL, config={**config, "seed": number}, exit_state=exit_state, rise=0.2)
        record = json.loads((path / "run.json").read_text())
        record |= {"versions": {ALL: ALL}, "machine": {ALL: ALL}, "data": {ALL: ALL}}
        (path / "run.json").write_text(json.dumps(record))
        runs.append(load_run(path))
    base, tuned = (
        hostile_evaluation(make_evaluation(root / name, gain=gain, seed=seed))
        for name, gain, seed in (("base", 0.0, 0), ("tuned", 0.3, 1))
    )
    profile = hostile_profile(root)
    write_report(runs[:1], root / "single", base, tuned, profile)
    write_report(runs, root / "several", base, tuned)
    page = comparison_html([compare_evaluations(base, tuned)])
    (root / "comparison.html").write_text(page)
    return {
        "single": root / "single" / "report.html",
        "several": root / "several" / "report.html",
        "comparison": root / "comparison.html",
        "entropy": root / "entropy" / "entropy.html",
    }


def hostile_evaluation(folder):
    """Every text in an evaluation replaced, and read back through our own reader."""
    results = load_results(folder)
    for item in results.items:
        item.prediction, item.target = ALL, HOSTILE[item.doc_id % len(HOSTILE)]
        item.task = item.task + NAME
    for task in results.tasks.values():
        task.group = task.group if task.group == "general" else ALL
    results.tasks = {name + NAME: task for name, task in results.tasks.items()}
    results.model.path, results.suite, results.versions = ALL, ALL, {ALL: folder.name + ALL}
    save_results(results, folder)
    return load_results(folder)


def hostile_profile(root):
    model = tiny_model_dir(root / "model", initializer_range=0.4)
    data = root / f"{NAME}.jsonl"
    data.write_text("".join(json.dumps({"question": text, "answer": text}) + "\n" for text in HOSTILE))
    return analyse(
        model, [data], Setting(0.5, None, 0.8), data_config=None, samples=4, gradient="head",
        gradient_samples=2, device="cpu", dtype="fp32", output=root / "entropy",
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


SEEN = """JSON.stringify({
  hacked: window.hacked ?? null,
  scripts: document.scripts.length,
  frames: document.querySelectorAll('iframe, object, embed, base, form, link').length,
  handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
  links: [...document.querySelectorAll('[href], [src]')].map(e => e.getAttribute('href') || e.getAttribute('src'))
    .filter(url => !/^(#|data:image\\/png)/.test(url)).length,
})"""


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without"])
@pytest.mark.parametrize("name", ["single", "several", "comparison", "entropy"])
def test_hostile_text_stays_text(pages, browser, name, policy, tmp_path):
    """Escaping alone must do, so the page is opened without its Content-Security-Policy too."""
    text = pages[name].read_text()
    assert "Content-Security-Policy" in text and "hacked" in text
    if not policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = tmp_path / "page.html"
    page.write_text(text)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    found = json.loads(browser.evaluate(SEEN))
    own_scripts = 1 if name == "entropy" else 0
    assert found == {"hacked": None, "scripts": own_scripts, "frames": 0, "handlers": 0, "links": 0}
    assert browser.requests == [] and browser.errors == []
    assert "<script>window.hacked=1</script>" in browser.evaluate("document.body.innerText") or name == "entropy"


def test_the_check_itself_sees_hostile_text(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(f"<p>{ALL}</p>")
    browser.requests.clear()
    browser.open(page)
    found = json.loads(browser.evaluate(SEEN))
    assert found["hacked"] == 1 and found["handlers"] and found["links"] and browser.requests
