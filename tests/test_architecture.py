"""The rules of the tree: which module may import which, and what every file looks like."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 400

# Lowest first. A module may import what is in a layer below, and beside itself only in its own
# package, or where EXCEPTIONS says so.
LAYERS = [
    [
        *(
            "config",
            "rows",
            "hub",
            "images",
            "ledger",
            "progress",
            "exhausted",
            "cluster",
            "device",
        ),
        *("memory", "schemes"),
        *("streaming", "worker", "batches", "pool", "board", "kept", "loaded", "tracking"),
        *("versions", "tiny", "alone", "fingerprints", "icc", "key_help", "messages"),
    ],
    ["sources"],
    ["rewards", "diffusion"],
    ["curate", "align", "evaluate", "report"],
    ["pipeline"],
    ["execute", "judging"],
    ["ablate"],
    ["cli"],
    ["__main__", "jobs"],
]
# Package to the modules beside or above it that it may use all the same.
EXCEPTIONS = {
    "evaluate": {"curate.colorfulness"},  # a metric of both
    "report": {"evaluate.labels", "evaluate.tables"},  # the table it shows
    "tiny": {"curate.u2net"},  # trains the embedded detector
}
# Library to the only modules that may import it.
ONLY_IN = {
    "ray": {
        "board",
        "cluster",
        "pool",
        "align.desk",
        "align.rank",
        "align.train",
        "ablate.search",
        "ablate.sweep",
    },
    "mlflow": {"tracking"},
}
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


def imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """Full names of all that a file imports: wherever it says so, or only when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


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
    return next(i for i, names in enumerate(LAYERS) if module.split(".")[0] in names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    package = module.split(".")[0]
    for other in own_imports(MODULES[module]):
        below = layer(other) < layer(module)
        same = other.split(".")[0] == package and package != "jobs"
        foundations = layer(other) == layer(module) == 0
        allowed = other in EXCEPTIONS.get(package, set())
        assert below or same or foundations or allowed, f"{module} imports {other}"


def test_no_module_imports_itself_in_a_circle():
    waiting = {name: set(own_imports(path, at_once=True)) for name, path in MODULES.items()}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        for name in free:
            del waiting[name]
    assert not waiting, f"these import each other: {sorted(waiting)}"


def test_every_exception_is_needed():
    used = {(name.split(".")[0], other) for name in MODULES for other in own_imports(MODULES[name])}
    for package, others in EXCEPTIONS.items():
        for other in others:
            assert (package, other) in used


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
    assert not list(imports(ROOT / "raypref" / "__init__.py"))


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
    known = {name for names in LAYERS for name in names}
    assert {module.split(".")[0] for module in MODULES} == known
