"""The pages as a browser sees them: they render, log no error and ask for nothing."""

import pytest

from tests.analysis.browser import needs_browser, visit
from tests.analysis.test_report import report

pytestmark = [needs_browser, pytest.mark.slow]


def colours(png: bytes) -> int:
    import io

    import matplotlib.image
    import numpy as np

    pixels = (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize("dark", [False, True])
def test_the_report_renders_alone(folders, tmp_path, dark):
    report(folders / "ease", "--base", folders / "base", "--tuned", folders / "tuned", "--output", tmp_path)
    seen = visit(tmp_path / "report.html", tmp_path, dark=dark)
    assert seen.console == [] and seen.requests == []
    assert colours(seen.screenshot) > 200  # text, tables and curves, not a blank page


def test_the_check_itself_sees_errors_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefined.thing</script>")
    seen = visit(page, tmp_path)
    assert any("TypeError" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
