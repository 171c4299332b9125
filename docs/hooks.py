"""What mkdocs does beyond its pages: reference pages from the code, and links out of ``docs/``.

On a code host a page may link to any file (``../eval_tasks/README.md``, ``../examples/plain_pytorch.py``). The site
takes those files in: a Markdown file becomes a page, anything else a download, and the links are rewritten. A link to a
file that does not exist is left alone, so that ``--strict`` reports it.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=(?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    pages = _reference_pages()
    files.append(File.generated(config, "reference/config.md", content=pages.config_page()))
    files.append(File.generated(config, "reference/commands.md", content=pages.commands_page()))
    todo = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while todo:
        source = todo.pop()
        for target in _outside(source):
            uri = _site_path(target)
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
                if target.suffix == ".md":
                    todo.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    if not page.file.abs_src_path:
        return markdown
    source = Path(page.file.abs_src_path)
    here = os.path.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        return os.path.relpath(_site_path(target), here or ".") if target.exists() else match[1]

    return LINK.sub(rewrite, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings say :class:`Curriculum`; pages say it without the role."""
    return re.sub(r":(?:meth|class|data|func|attr|mod):(?=<code>)", "", html)


def _outside(source: Path) -> list[Path]:
    """Existing files of the repository outside of ``docs/`` that a Markdown file links to; a folder by its README."""
    links = LINK.findall(source.read_text(encoding="utf-8"))
    targets = [_readme((source.parent / link).resolve()) for link in links]
    return [path for path in targets if path.is_file() and ROOT in path.parents and DOCS not in path.parents]


def _readme(target: Path) -> Path:
    return target / "README.md" if target.is_dir() else target


def _site_path(target: Path) -> str:
    target = _readme(target)
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    return f"repository/{target.relative_to(ROOT).as_posix()}"


def _reference_pages() -> Any:
    # mkdocs loads this file by its path, so that its neighbour is on no import path.
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
