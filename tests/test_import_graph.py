"""The imports of the package: a tree that runs one way."""

import ast
from pathlib import Path

import pytest

import pat_mmdet

PACKAGE = Path(pat_mmdet.__file__).parent
# From the bottom to the top; a module belongs to the longest name that it begins with, and imports
# modules of its own layer or of lower ones.
LAYERS = (
    (
        "version",
        "structures",
        "utils.version_check",
        "utils.paths",
        "utils.errors",
        "utils.argument_types",
        "utils.signatures",
    ),
    ("registry", "models.losses", "models.acceleration"),
    ("models.layers", "utils"),
    ("models.backbones", "models.task_modules", "models.methods"),
    ("models.classifiers", "models.distillers"),
    ("datasets", "evaluation", "visualization", "models"),
    ("engine",),
    ("deploy",),
    ("",),
    ("cli", "__main__"),
    ("apis",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def modules():
    """The modules of the package by their names in it, and their files."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not parts[0].startswith("."):
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(source, folder, known):
    """The modules of the package that the source of a module in a folder imports, at any place."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Relative names begin in the package of the module.
            start = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in found:
            package, _, target = target.partition(".")
            if package == "pat_mmdet":
                yield target if target in known else target.rpartition(".")[0]


def height(name):
    """The layer of a module."""
    while name and name not in HEIGHT:
        name = name.rpartition(".")[0]
    return HEIGHT[name]


def test_imports_are_found():
    source = """
import pat_mmdet.cli.train, torch
from ..structures.prompt import Prompt
from . import layers
def later():
    from pat_mmdet.models.layers import AFP
    """
    known = {"cli.train", "structures.prompt", "models.layers"}
    found = sorted(imports(source, ["pat_mmdet", "models"], known))
    assert found == ["cli.train", "models.layers", "models.layers", "structures.prompt"]
    assert height("cli.train") > height("models.layers.afp") > height("structures.prompt")


@pytest.fixture(scope="module")
def graph():
    known = dict(modules())
    graph = {}
    for name, path in known.items():
        folder = ["pat_mmdet", *path.relative_to(PACKAGE).parent.parts]
        graph[name] = set(imports(path.read_text(encoding="utf-8"), folder, known)) - {name}
    return graph


def test_imports_run_down(graph):
    assert len(graph) > 50
    upwards = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if height(target) > height(name)
    ]
    assert upwards == []


def test_no_import_circle(graph):
    done, path = set(), []

    def visit(name):
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in graph[name]:
            # A package imports its modules; these may import the neighbours that it lists.
            if not name.startswith(f"{target}.") and target:
                visit(target)
        done.add(path.pop())

    for name in graph:
        visit(name)


def test_every_layer_exists(graph):
    assert set(HEIGHT) <= set(graph)
