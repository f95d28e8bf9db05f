"""Imports run one way, and heavy packages are imported only where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import lightning_uncertainty

PACKAGE = Path(lightning_uncertainty.__file__).parent
LAYERS = [
    {"precision"},
    {"metrics", "global_batch", "architectures", "epistemic"},
    {"likelihoods"},
    {"weightings"},
    {"heads", "heteroscedastic"},
    {"corrections", "predictions"},
    {"step_window", "tasks", "optimizers", "loss_vectors", "trainers"},
    {"kpis"},
    {"mixin"},
    {"module"},
    {"dashboards", "report"},
    {"callbacks"},
    {"trials", "calibration"},
    {"comparison", "weight_search"},
    {"compare", "search"},
    {"examples"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
OPTIONAL = {
    *("matplotlib", "pandas", "plotly", "rich", "tensorboard", "jsonargparse", "wandb", "wandb_workspaces"),
    *("torchjd", "sklearn", "optuna"),
}


def imports(path):
    """Yield every imported module of a file, and whether it is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            later |= {id(node) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module, id(node) not in later


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files():
    return [path for path in PACKAGE.rglob("*.py") if room_of(path) not in ("__init__", "__main__")]


def test_every_file_has_a_room():
    assert {room_of(path) for path in files()} == set(RANK)


def test_imports_run_one_way():
    for path in files():
        own = room_of(path)
        for module, _ in imports(path):
            if module.startswith("lightning_uncertainty."):
                other = module.split(".")[1]
                assert other == own or RANK[other] < RANK[own], f"{path.name} imports {module}"


def test_lightning_enters_with_the_module_and_extras_where_used():
    for path in files():
        for module, at_once in imports(path):
            top = module.split(".")[0]
            assert top not in LIGHTNING or RANK[room_of(path)] >= RANK["module"], f"{path.name} imports {module}"
            assert top not in OPTIONAL or not at_once, f"{path.name} imports {module} when it is imported"


def test_weightings_are_abstract_or_final():
    """No weighting derives from another that can be used itself."""
    abstract = {"Weighting", "LearntWeighting"}
    for path in (PACKAGE / "weightings").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Weighting") and node.name != "Weighting":
                assert {ast.unparse(base) for base in node.bases} < abstract, node.name


def test_importing_the_package_imports_no_dashboard_and_no_oracle():
    program = "import sys, lightning_uncertainty; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert {"wandb", "plotly", "wandb_workspaces", "torchjd", "jsonargparse", "optuna"}.isdisjoint(shown.stdout.split())
