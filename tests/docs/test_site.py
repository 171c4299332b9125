"""The site builds without a network and without a broken link; its pages ask for nothing and fit a phone."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.analysis.browser import Browser, needs_browser
from tests.docs.markdown import ROOT

BUILD = """
import socket, sys
def refuse(*arguments): raise OSError(f"the build wants a network: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""
SHOWN = ("index", "tutorial", "reference/config", "reference/commands", "method-api", "repository/eval_tasks/index")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(config), str(site)],
        capture_output=True,
        text=True,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_reference_names_every_key_and_command(site):
    from entrodrop_tune import method
    from entrodrop_tune.cli.main import app
    from entrodrop_tune.training.config import RunConfig

    config = text_of(site / "reference" / "config.html")
    assert all(name in config for name in RunConfig.model_fields)
    assert "early_stopping_patience" in config and "optimizer._component_" not in config
    commands = text_of(site / "reference" / "commands.html")
    for info in app.registered_commands:
        assert f"entrodrop {info.name or info.callback.__name__}" in commands
    python = text_of(site / "method-api.html")
    assert all(name in python for name in method.__all__ if callable(getattr(method, name)) and name != "Select")
    assert ":class:" not in python


@pytest.mark.slow
def test_files_that_pages_link_to_are_on_the_site(site):
    for path in ("studies/results/entropy-smollm2.json", "examples/plain_pytorch.py", "benchmarks/results"):
        assert (site / "repository" / path).exists(), path


@pytest.mark.slow
def test_broken_links_stop_the_build(tmp_path):
    for name in ("docs", "eval_tasks", "studies", "examples", "benchmarks", "entrodrop_tune/method"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    broken = ("nowhere.md", "../examples/nowhere.py", "data.md#nowhere")
    with (tmp_path / "docs" / "tutorial.md").open("a") as page:
        page.write("".join(f"\n[broken]({link})\n" for link in broken))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert all(f"'{link}'" in said for link in broken) and "Aborted with 3 warnings" in said, said


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@needs_browser
@pytest.mark.slow
def test_pages_ask_for_nothing_and_fit(address):
    with Browser() as browser:
        for page in SHOWN:
            for width in (1300, 390):
                browser.open(f"{address}{page}.html", width=width)
                assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (page, width)
        time.sleep(1)  # scripts that load late
        assert browser.evaluate("document.querySelector('h1').innerText.length") > 3
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith(address)] == []


@needs_browser
@pytest.mark.slow
def test_search_finds_a_key(address):
    with Browser() as browser:
        browser.open(f"{address}index.html?q=early_stopping_patience")
        for _ in range(100):
            if browser.evaluate("document.querySelectorAll('.md-search-result__link').length"):
                break
            time.sleep(0.1)
        hits = browser.evaluate("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href).join(' ')")
        assert "reference/config" in hits
