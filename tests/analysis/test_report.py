import itertools
import json
import re
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from entrodrop_tune.analysis.runs import load_run
from entrodrop_tune.analysis.style import svg
from entrodrop_tune.cli.main import app
from entrodrop_tune.errors import UserError
from tests.analysis.synthetic import make_run


class Page(HTMLParser):
    """What a page is made of: tags, ids, attributes that load something, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.loads, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.loads += [attributes[key] for key in ("src", "href", "xlink:href", "action") if attributes.get(key)]

    def handle_data(self, data):
        self.text.append(data)


def report(*arguments):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result


@pytest.fixture(scope="module")
def single(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    report(folders / "ease", "--base", folders / "base", "--tuned", folders / "tuned", "--output", output)
    return output


def test_writes_four_files_that_agree(single, folders):
    assert {path.name for path in single.iterdir()} == {"report.json", "report.html", "report.md", "curves.png"}
    content = json.loads((single / "report.json").read_text())
    best = load_run(folders / "ease").validation["nll"].min()
    assert content["runs"][0]["summary"]["best_nll"] == pytest.approx(best)
    for name in ("report.html", "report.md"):
        assert f"{best:.3f}" in (single / name).read_text()
    assert (single / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_number_of_the_score_table_is_in_the_json(single):
    page = " ".join(Page((single / "report.html").read_text()).text)
    for row in json.loads((single / "report.json").read_text())["evaluation"]["scores"]:
        assert f"{row['base']['value']:.3f}" in page and f"{row['tuned']['value']:.3f}" in page


def test_the_page_loads_nothing_and_runs_no_script(single):
    page = Page((single / "report.html").read_text())
    assert all(load.startswith("#") for load in page.loads)
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object"}]
    assert "url(http" not in (single / "report.html").read_text()


def test_the_page_is_accessible_by_structure(single):
    page = Page((single / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and tags.count("main") == 1 and "header" in tags and "footer" in tags
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(deeper - upper <= 1 for upper, deeper in itertools.pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert drawings and all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawings)


def test_what_a_figure_shows_is_said_as_it_is():
    """A label of runs may hold a template's backslashes."""
    drawing = svg(lambda axes: axes.plot([0, 1]), "one", alt='template=Q \\d+ \\1 \\g<0> & "more" is better')
    (head,) = [attributes for tag, attributes in Page(drawing).tags if tag == "svg"]
    assert head["aria-label"] == 'template=Q \\d+ \\1 \\g<0> & "more" is better'
    assert len(head["viewbox"].split()) == 4


def test_model_output_cannot_become_markup(single):
    text = (single / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text


def test_several_runs_show_what_differs(folders, tmp_path):
    report(folders / "ease", folders / "ramp", "--output", tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["ease", "ramp"]
    assert content["config_difference"]["entrodrop.preset"] == [None, "ramp"]
    assert "entrodrop.preset" in (tmp_path / "report.html").read_text()
    assert "| entrodrop.preset | None | ramp |" in (tmp_path / "report.md").read_text()


def test_seeds_of_one_configuration_are_compared_as_a_group(tmp_path):
    from tests.analysis.test_compare_runs import study

    study(tmp_path / "runs", gains=(0.0, 0.05))
    report(*sorted((tmp_path / "runs").iterdir()), "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["title"] == "8 runs"
    assert "select=none is worse than select=entropy" in content["verdict"][0]
    page = " ".join(Page((tmp_path / "out" / "report.html").read_text()).text)
    assert content["verdict"][0] in page and "Comparison" in page
    # Eight runs with the same warning are one warning.
    assert len(content["warnings"]) == 1 and len(content["warnings"][0]["runs"]) == 8


def test_a_warning_of_several_runs_is_one_line_of_markdown(tmp_path):
    runs = [make_run(tmp_path / name, epochs=2, exit_state="failed") for name in ("one", "two")]
    report(*runs, "--output", tmp_path / "out")
    (warning,) = re.findall(r"^.*The run failed.*$", (tmp_path / "out" / "report.md").read_text(), re.MULTILINE)
    assert warning.startswith("- **The run failed** (in one, two). ") and warning.count("**") == 2


def test_gradient_share_comes_from_an_entropy_profile(folders, tiny_model, tiny_data, tmp_path):
    from entrodrop_tune.analysis.entropy_command import analyse
    from entrodrop_tune.analysis.entropy_profile import Setting

    analyse(
        tiny_model, [tiny_data], Setting(0.5, None, 0.8), data_config=None, samples=2, gradient="head",
        gradient_samples=2, device="cpu", dtype="fp32", output=tmp_path / "entropy",
    )  # fmt: skip
    report(folders / "ease", "--entropy", tmp_path / "entropy", "--output", tmp_path / "out")
    page = " ".join(Page((tmp_path / "out" / "report.html").read_text()).text)
    assert "Where the gradient comes from" in page
    with pytest.raises(UserError, match=r"no entropy\.json"):
        report(folders / "ease", "--entropy", tmp_path, "--output", tmp_path / "out")


def test_json_goes_to_standard_output(folders, tmp_path):
    result = report(folders / "ease", "--output", tmp_path, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "report.json").read_text())


def test_a_run_that_has_only_begun_can_be_reported(tmp_path):
    run = make_run(tmp_path / "run", exit_state="running", stop_at=0.0)
    for name in ("metrics.jsonl", "validation.jsonl"):
        (run / name).write_text("")
    report(run, "--output", tmp_path / "out")
    assert "no validation" in (tmp_path / "out" / "report.md").read_text()


def test_the_same_input_gives_the_same_page(folders, tmp_path):
    for name in ("one", "two"):
        report(folders / "ease", "--output", tmp_path / name)
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ease", "--base", "base"], "--tuned"),
        (["ease", "ramp"], "--output"),
        (["base"], "run.json"),
        (["ease", "--base", "ramp", "--tuned", "tuned"], "eval"),
    ],
)
def test_mistakes_are_refused_in_one_line(folders, arguments, message):
    arguments = [word if word.startswith("--") else str(folders / word) for word in arguments]
    with pytest.raises(UserError, match=message) as caught:
        CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)
