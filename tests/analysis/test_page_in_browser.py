"""The pages as a browser sees them: they render, log no error, ask for nothing, fit a phone, and obey the keyboard."""

import io

import matplotlib.image
import numpy as np
import pytest

from entrodrop_tune.analysis.entropy_command import analyse
from entrodrop_tune.analysis.entropy_profile import Setting
from tests.analysis.browser import Browser, needs_browser
from tests.analysis.test_report import report
from tests.tiny import tiny_model_dir

pytestmark = [needs_browser, pytest.mark.slow]
LAYOUTS = [(1200, False), (1200, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(folders, tiny_data, tmp_path_factory):
    """Folder with the pages to look at: single.html, several.html, entropy.html."""
    output = tmp_path_factory.mktemp("pages")
    report(folders / "ease", "--base", folders / "base", "--tuned", folders / "tuned", "--output", output / "single")
    report(folders / "ease", folders / "ramp", "--output", output / "several")
    # Larger initial weights: entropies that differ, as a trained model's do.
    model = tiny_model_dir(output / "model", initializer_range=0.4)
    analyse(
        model, [tiny_data], Setting(0.5, None, 0.8), data_config=None, samples=4, gradient="head",
        gradient_samples=4, device="cpu", dtype="fp32", output=output / "entropy",
    )  # fmt: skip
    return {
        "single": output / "single" / "report.html",
        "several": output / "several" / "report.html",
        "entropy": output / "entropy" / "entropy.html",
    }


def pixels(png):
    return (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).astype(int).reshape(-1, 3)


@pytest.mark.parametrize(("width", "dark"), LAYOUTS)
@pytest.mark.parametrize("name", ["single", "several", "entropy"])
def test_renders_alone_at_every_width_and_theme(pages, browser, name, width, dark):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(pages[name], width=width, dark=dark)
    seen = pixels(browser.screenshot())
    assert browser.errors == [] and browser.requests == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert len(np.unique(seen, axis=0)) > 200  # text, tables and curves, not a blank page
    assert (np.median(seen) < 80) == dark


def test_the_check_itself_sees_errors_and_requests(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefined.thing</script>")
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    assert any("TypeError" in error for error in browser.errors)
    assert browser.requests == ["http://127.0.0.1:9/x.png"]


def test_the_policy_blocks_what_the_page_does_not_ship(pages, browser, tmp_path):
    text = pages["entropy"].read_text().replace("</main>", "<script>window.alien = 1</script></main>")
    page = tmp_path / "tampered.html"
    page.write_text(text)
    browser.errors.clear()
    browser.open(page)
    assert browser.evaluate("window.alien") is None and browser.errors


def focused(browser):
    return browser.evaluate("document.activeElement.dataset.t ?? null")


def test_tokens_are_reached_and_read_by_keyboard(pages, browser):
    browser.open(pages["entropy"])
    tokens = browser.evaluate("[...document.querySelector('.tokens').querySelectorAll('.t')].map(t => t.dataset.t)")
    for _ in range(40):
        browser.press("Tab")
        if focused(browser) is not None:
            break
    assert focused(browser) == tokens[0]
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert focused(browser) == tokens[2]
    assert tokens[2] in browser.evaluate("document.getElementById('detail').textContent")
    browser.press("End")
    assert browser.evaluate("[...document.querySelectorAll('.tokens')][0].lastElementChild === document.activeElement")
    browser.press("Tab")  # one stop a sample: the next one is in another
    assert browser.evaluate("document.activeElement.closest('.tokens') !== document.querySelector('.tokens')")


def test_the_sliders_strike_out_what_their_setting_drops(pages, browser):
    browser.open(pages["entropy"])

    def dropped(quantile, rate):
        return browser.evaluate(
            f"quantile.value = {quantile}; rate.value = {rate}; rate.dispatchEvent(new Event('input'));"
            "document.querySelectorAll('.t.dropped').length / document.querySelectorAll('.t').length"
        )

    assert dropped(0.5, 0) == 0 and dropped(0, 1) == 0 and dropped(1, 1) == 1
    assert dropped(0.5, 1) == pytest.approx(0.5, abs=0.05)
    assert dropped(0.5, 0.5) == pytest.approx(0.25, abs=0.12)
    assert "% of these tokens are dropped" in browser.evaluate("said.textContent")
