"""Open a page in headless Chromium and say what it complained about and what it tried to load."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed (apt install chromium)")


@dataclass(frozen=True)
class Visit:
    console: list[str]
    requests: list[str]
    screenshot: bytes


def visit(page: Path, folder: Path, *, width: int = 1200, height: int = 1600, dark: bool = False) -> Visit:
    """Render ``page`` with a fresh profile; ``requests`` are the network URLs it asked for, answered or not."""
    shot, log = folder / "page.png", folder / "net.json"
    result = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves the machine
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={shot}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Visit(console, _requested(log), shot.read_bytes())


def _requested(log: Path) -> list[str]:
    text = log.read_text()
    # The browser closes the list only on a clean exit.
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    wanted = [event["params"] for event in events if "initiator" in event.get("params", {})]
    # What the browser asks for on its own account (the time, updates) has no page as its initiator.
    urls = {params["url"] for params in wanted if params["initiator"] != "not an origin"}
    return sorted(url for url in urls if not url.startswith(("file:", "data:")))
