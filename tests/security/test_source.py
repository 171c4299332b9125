"""What the package's own source may never do: run code that comes in a file."""

import ast
from pathlib import Path

import pytest

import entrodrop_tune

PACKAGE = Path(entrodrop_tune.__file__).parent
# Generated programs are run here, and talk to their checker in pickles of plain data; see the sandbox's tests.
SANDBOX = PACKAGE / "evaluation" / "sandboxed"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if SANDBOX not in path.parents)
PICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dotted(node: ast.AST) -> str:
    """``torch.load`` for ``torch.load(...)``'s function."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> list[str]:
    """Each call or import that could run code from a file, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{name}" for name in names}
            names -= {"pickle.UnpicklingError"}
            found += [f"line {node.lineno}: import {name}" for name in names if name.partition(".")[0] in PICKLING]
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        name = dotted(node.func)
        unsafe = {
            "torch.load": given.get("weights_only") != "True",
            "np.load": given.get("allow_pickle") != "False",
            "yaml.load": True,
            "yaml.unsafe_load": True,
            "yaml.full_load": True,
            "eval": True,
            "exec": True,
            "compile": True,
            "os.system": True,
        }.get(name, False)
        if unsafe or given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        # Left out, transformers would ask on the terminal whether to run code that lies in the folder.
        if name.startswith("Auto") and name.endswith(".from_pretrained") and "trust_remote_code" not in given:
            found.append(f"line {node.lineno}: {name} without trust_remote_code=False")
    return found


def test_nothing_in_the_package_runs_code_from_files():
    assert len(SOURCES) > 50
    found = {str(path.relative_to(PACKAGE)): dangers(ast.parse(path.read_text())) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import UnpicklingError, loads",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
    ],
)
def test_the_check_itself_sees(source):
    assert dangers(ast.parse(source))


def test_no_task_file_asks_for_remote_code():
    for path in (PACKAGE / "eval_tasks").rglob("*.yaml"):
        assert "trust_remote_code" not in path.read_text(), path
