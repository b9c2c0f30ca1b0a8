"""The rules of the tree: which module may import which, and what every file looks like."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 400

# Lowest first. A module may import what is in a package below, and beside itself only in its own.
LAYERS = [
    "core",
    "images",
    "models",
    "engine",
    "rewards",
    "sources",
    "curate",
    "pairs",
    "align",
    "evaluate",
    "report",
    "judge",
    "run",
    "sample",
    "study",
    "ablate",
    "commands",
    "cli",
    "__main__",
    "jobs",
    "demo",  # found by its scheme, imported by nothing
]
# Library to the only modules that may import it.
ONLY_IN = {
    "ray": {
        "engine.actors",
        "engine.board",
        "engine.cluster",
        "engine.pool",
        "engine.readers",
        "align.desk",
        "align.rank",
        "align.train",
        "ablate.search",
        "ablate.sweep",
    },
    "mlflow": {"core.tracking_mlflow"},
    "tensorboardX": {"core.tracking_tensorboard"},
    "wandb": {"core.tracking_wandb"},
    "bitsandbytes": {"models.quantised", "align.adamw8bit"},
}
# Packages whose members share a protocol: a function's name may repeat among them.
PROTOCOLS = {"align.objectives", "models.families", "report", "rewards", "sources.layouts"}
# Packages whose __init__.py is the visible list of their members, one line each.
REGISTRIES = {"sources.layouts"}
# Must work where Ray is not installed: in a notebook, on a GPU box. (Settings and stages need none
# of the large libraries: see test_lazy_start.py.)
WITHOUT_RAY = [
    "raypref.align.loop",
    "raypref.models.u2net",
    "raypref.models.fuse",
    "raypref.models.checks",
    "raypref.models.families.sd15",
    "raypref.models.families.sd3",
    "raypref.report.page",
]


def modules() -> dict[str, Path]:
    """Modules without the leading `raypref.`, and the scripts as `jobs.NAME`."""
    found = {}
    for path in sorted((ROOT / "raypref").rglob("*.py")):
        parts = path.relative_to(ROOT / "raypref").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    for path in sorted((ROOT / "jobs").glob("*.py")):
        found[f"jobs.{path.stem}"] = path
    del found[""]  # raypref/__init__.py
    return found


MODULES = modules()
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


@cache
def imports(path: Path, *, at_once: bool = False) -> list[str]:
    """Full names of all that a file imports: wherever it says so, or outside of functions.

    What it imports for types alone (`if TYPE_CHECKING`) is outside of functions.
    """
    waiting, names = [ast.parse(path.read_text(encoding="utf-8"))], []
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                names += [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names += [f"{node.module}.{name.name}" for name in node.names]
            elif not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                waiting.append(node)
    return names


def own_imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Modules of the project that a file imports, without the leading `raypref.`."""
    for name in imports(path, at_once=at_once):
        top, _, rest = name.partition(".")
        if top == "raypref":
            while rest and rest not in MODULES:  # a name within the module
                rest = rest.rpartition(".")[0]
            if rest:
                yield rest


def layer(module: str) -> int:
    """Its place in LAYERS."""
    return LAYERS.index(module.split(".")[0])


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    package = module.split(".")[0]
    for other in own_imports(MODULES[module]):
        same = other.split(".")[0] == package and package != "jobs"
        assert layer(other) < layer(module) or same, f"{module} imports {other}"


def test_no_module_imports_itself_in_a_circle():
    waiting = {name: set(own_imports(path, at_once=True)) for name, path in MODULES.items()}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        for name in free:
            del waiting[name]
    assert not waiting, f"these import each other: {sorted(waiting)}"


def test_a_public_name_means_one_thing():
    """No class is defined twice; a function's name repeats only among members of one protocol."""
    places: dict[tuple[str, bool], list[str]] = {}
    for module, path in MODULES.items():
        if module.startswith("jobs."):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                key = node.name, isinstance(node, ast.ClassDef)
                if not node.name.startswith("_"):
                    places.setdefault(key, []).append(module)
    repeated = {
        name: modules
        for (name, is_class), modules in places.items()
        if len(modules) > 1
        and (is_class or len({m.rpartition(".")[0] for m in modules} & PROTOCOLS) != 1)
    }
    assert repeated == {}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_to_few(library):
    users = {
        name
        for name, path in MODULES.items()
        if any(imported.split(".")[0] == library for imported in imports(path))
    }
    assert users == ONLY_IN[library]


def test_what_needs_no_ray_works_without():
    code = "import sys; sys.modules['ray'] = None; import " + ", ".join(WITHOUT_RAY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_a_line_what_it_is(module):
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    assert docstring, f"{module} has no docstring"
    first, *rest = docstring.splitlines()
    assert first.endswith((".", ":"))
    assert not rest or not rest[0], f"{module}: the first line stands alone"


def test_packages_hand_nothing_on():
    for name in PACKAGES:
        body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
        if name in REGISTRIES:
            assigned = [node.target for node in body if isinstance(node, ast.AnnAssign)]
            assert [ast.unparse(target) for target in assigned] == ["REGISTRY"]
            continue
        assert len(body) == 1, f"{name}/__init__.py holds more than its docstring"
    assert not imports(ROOT / "raypref" / "__init__.py")


def test_no_file_is_too_long():
    files = [
        path
        for folder in ("raypref", "jobs", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 50
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_every_part_of_the_tree_has_a_place_in_the_layers():
    assert {module.split(".")[0] for module in MODULES} == {*LAYERS}


def test_the_readme_names_every_package_with_its_own_words():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in LAYERS:
        if name in PACKAGES:
            docstring = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
            assert f"| `{name}/` | {docstring} |" in readme, name
