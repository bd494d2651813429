"""Imports point down: nouns below everything, the command line above it. Read from the source, nothing is run."""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import budgetft

ROOT = Path(budgetft.__file__).resolve().parent
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
NOUNS = (
    "errors",
    "units",
    "value",
    "profiles",
    "gpu_text",
    "gpu_size",
    "gpu",
    "model",
    "contract",
    "knobs",
    "workload",
    "outcome",
    "plan",
    "lock",
    "host_gpus",
    "duration",
    "shown",
    "results",
)
ABOVE = {
    "meter": {"export", "evaluate", "data", "step", "predict", "measure", "search", "train", "report", "cli"},
    "data": {"export", "evaluate", "meter", "step", "predict", "measure", "search", "train", "report", "cli"},
    "step": {"export", "evaluate", "predict", "measure", "search", "train", "report", "cli"},
    "predict": {"export", "evaluate", "search", "train", "report", "cli"},
    "measure": {"export", "evaluate", "predict", "search", "train", "report", "cli"},
    "search": {"export", "evaluate", "train", "report", "cli"},
    "train": {"export", "evaluate", "predict", "measure", "search", "report", "cli"},
    "evaluate": {"export", "predict", "measure", "search", "report", "cli"},
    "report": {"export", "evaluate", "search", "cli"},
    "export": {"evaluate", "data", "meter", "search", "report", "cli"},
    "workflow": FOLDERS - {"workflow", "data"},
    "doctor": FOLDERS - {"doctor"},
}
ROOMS_OF_DATA = {
    "": {"read", "wts", "synthetic"},
    "media": {"read", "wts", "synthetic"},
    "wts": {"read", "synthetic"},
    "read": {"wts", "synthetic"},
    "synthetic": {"read"},
}
"""What the files of each room in ``data`` may not import; the first are those that lie in no room."""


def imports(path: Path, *, typing: bool = True) -> Iterator[tuple[str, bool]]:
    """Every module that a file names in an import, those inside functions too, and whether it loads on import.

    ``typing``: those for type checkers too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only and not typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not looked through here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in lazy | typing_only


def folders_used(path: Path) -> set[str]:
    return {parts[1] for name, _ in imports(path) if (parts := name.split("."))[0] == "budgetft" and parts[1] in FOLDERS}


def test_every_folder_has_its_place_in_the_order():
    assert FOLDERS - {"cli"} == set(ABOVE), "a new folder: say here what it may not import"
    assert {path.stem for path in ROOT.glob("*.py")} >= set(NOUNS)


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun_imports_no_verb_and_no_torch(noun):
    path = ROOT / f"{noun}.py"
    assert folders_used(path) == set()
    heavy = {name.split(".")[0] for name, at_once in imports(path) if at_once} & {"torch", "transformers", "numpy", "optuna"}
    assert heavy == set()


@pytest.mark.parametrize("folder", ABOVE)
def test_a_folder_imports_nothing_from_above(folder):
    wrong = {
        str(path.relative_to(ROOT)): upward
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (upward := folders_used(path) & (ABOVE[folder] | {"workflow"} - {folder}))
    }
    assert wrong == {}


def test_nothing_imports_the_command_line_but_its_entry_point():
    users = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if "cli" in folders_used(path)}
    assert users <= {"cli", "__main__.py"}


@pytest.mark.parametrize("folder", ["cli", "search", "measure", "data", "report", "export", "workflow"])
def test_torch_is_loaded_only_where_it_is_used(folder):
    """A command that needs no torch must be able to import these; the step, the traces and the trainer may load it."""
    loads = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / folder).rglob("*.py"))
        if any(at_once and name.split(".")[0] in ("torch", "transformers", "peft") for name, at_once in imports(path))
    ]
    assert loads == [], loads


def _is_there(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return hasattr(import_module(module), attribute) or find_spec(name) is not None


def test_scripts_of_the_reports_import_what_is_there():
    """Evidence whose script no longer runs is none."""
    gone = []
    for path in sorted((ROOT.parent / "reports").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("budgetft"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                gone += [f"{path.name}: {name}" for name in names if not _is_there(name)]
    assert gone == []


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        "import torch.nn\nfrom budgetft import step\nfrom budgetft.cli.show import rate\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import optuna\n"
        "def act():\n    from budgetft.search.run import make_plan\n    import numpy\n"
    )
    assert folders_used(path) == {"step", "cli", "search"}
    at_once = {name for name, now in imports(path) if now}
    assert at_once == {"torch.nn", "budgetft.step", "budgetft.cli.show.rate", "typing.TYPE_CHECKING"}


@pytest.mark.parametrize("room", ROOMS_OF_DATA)
def test_rooms_of_data_import_down_too(room):
    folder = ROOT / "data"
    assert {path.parent.name for path in folder.glob("*/__init__.py")} | {""} == set(ROOMS_OF_DATA)
    wrong = {
        path.name: upward
        for path in sorted((folder / room).glob("*.py"))
        if (
            upward := {name.split(".")[2] for name, _ in imports(path) if name.startswith("budgetft.data.")}
            & ROOMS_OF_DATA[room]
        )
    }
    assert wrong == {}


def test_no_module_needs_one_that_needs_it():
    modules = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
    needed = {
        name: {one for one in (_module(each, modules) for each, _ in imports(path, typing=False)) if one}
        for name, path in modules.items()
    }
    clear: set[str] = set()
    while free := {name for name, others in needed.items() if name not in clear and others - {name} <= clear}:
        clear |= free
    assert sorted(set(modules) - clear) == [], "these, and what needs them, import one another"


def _module(name: str, modules: dict[str, Path]) -> str | None:
    """The module that holds ``name``, which an import statement names."""
    return next((one for one in (name, name.rpartition(".")[0]) if one in modules), None)
