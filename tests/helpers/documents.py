"""Checks of the code blocks in README.md, CONTRIBUTING.md and docs/.

Python blocks are run, each as a script of its own; configs are read as the tools read them. A block
that needs what a test does not have follows a line ``<!-- not run: REASON -->``: its imports,
attributes and arguments are resolved. Shell commands are parsed by the tools that they call. A
block after a paragraph that names a file and ends with a colon is saved under that name, for the
blocks below it.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import folders
from helpers.tools import ROOT, load_tool, run_tool

# Packages that are not installed with this one, and what it is used with.
OPTIONAL = ("openvino",)
PROGRAMS = ("cd", "chromium", "docker", "git", "pre-commit", "source", "trtexec")
# The tool that a script runs, the tool's arguments among the script's, and how many the script has.
SCRIPTS = {
    "tools/dist_train.sh": ("tools/train.py", slice(1), 2),
    "tools/dist_test.sh": ("tools/test.py", slice(2), 3),
    "tools/slurm_train.sh": ("tools/train.py", slice(2, 3), 4),
}


class Parsed(Exception):  # noqa: N818
    """Carries the arguments of a tool out of it, before it begins to work."""


def set_up(namespace):
    """Make the folder in which the blocks of a document run, with configs and data in it."""
    namespace["temporary"] = tempfile.TemporaryDirectory()
    folder = namespace["folder"] = Path(namespace["temporary"].name)
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in ("mine", "pets"):
        folders.coco(folder / "data" / name)


def clean_up(namespace):
    """Remove the folder."""
    namespace["temporary"].cleanup()


def check_python(example):
    """Run a Python block, or read it as a config."""
    tree = ast.parse(example.parsed)
    before = example.document.text[: example.start].rstrip()
    if is_config(tree):
        check_config(example, tree)
    elif re.search(r"<!-- not run: .+ -->$", before):
        check_names(tree)
    else:
        add_inputs(example.namespace["folder"])
        script = save(example, example.parsed)
        run(example, script)


def save(example, text, folder="."):
    """Save a block, under the name that the paragraph before it introduces if there is one."""
    root = example.namespace["folder"]
    paragraph = example.document.text[: example.start].rstrip().rpartition("\n\n")[2]
    names = re.findall(r"`([\w/]+\.py)`", paragraph) if paragraph.endswith(":") else []
    path = root / names[-1] if names else root / folder / f"block_{example.line}.py"
    if path.exists():  # a config of the project that the paragraph mentions
        path = root / folder / f"block_{example.line}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- Python


def run(example, script, *args):
    """Run a script in the folder of the document, whose modules it finds."""
    folder = example.namespace["folder"]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    run_tool(script, *args, cwd=folder, env={**os.environ, "PYTHONPATH": path})


def is_config(tree):
    """Return True if a block assigns plain values and dicts alone."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return all(isinstance(node, ast.Assign) for node in tree.body) and all(
        getattr(function, "id", None) == "dict" for function in calls
    )


def check_config(example, tree):
    """Read a config as the tools do; a part without a base is put on that of the COCO pair."""
    root, text, folder = example.namespace["folder"], example.parsed, "."
    bases = [node.value for node in tree.body if node.targets[0].id == "_base_"]
    if not bases:
        text = f'_base_ = "pat/swin_t-res18_coco.py"\n{text}'
    if not bases or (root / "configs" / ast.literal_eval(bases[0])).is_file():
        folder = "configs"
    run(example, "misc/print_config.py", save(example, text, folder))


def add_inputs(folder):
    """Write what programs read: a photograph and two networks with fixed predictions."""
    if (folder / "photo.jpg").exists():
        return
    import cv2
    from onnx import TensorProto, helper, numpy_helper, save_model

    cv2.imwrite(str(folder / "photo.jpg"), np.full((48, 64, 3), 128, np.uint8))
    detections = dict(
        boxes=np.float32([[8, 8, 40, 40]]), scores=np.float32([0.9]), labels=np.int64([1])
    )
    for name, outputs, task in (
        ("student.onnx", detections, "detection"),
        ("classifier.onnx", dict(probabilities=np.float32([[0.2, 0.8]])), "classification"),
    ):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
        nodes = [
            helper.make_node("Constant", [], [key], value=numpy_helper.from_array(value))
            for key, value in outputs.items()
        ]
        infos = [
            helper.make_tensor_value_info(
                key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for key, value in outputs.items()
        ]
        model = helper.make_model(
            helper.make_graph(nodes, task, [image], infos),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
        metadata = dict(task=task, classes='["cat", "dog"]', score_thr="0.05", test_pipeline="[]")
        helper.set_model_props(model, metadata)
        save_model(model, str(folder / name))


def check_names(tree):
    """Check that what a program imports exists, and takes the arguments that it is given."""
    names = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for alias in node.names:
            if isinstance(node, ast.Import):
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                imported = import_module(alias.name) and import_module(module)
            else:
                module = import_module(node.module)
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
                imported = getattr(module, alias.name)
            names[alias.asname or alias.name.partition(".")[0]] = imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            resolve(node, names)
        elif isinstance(node, ast.Call):
            function = resolve(node.func, names)
            if function is not None:
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(function).bind(*node.args, **keywords)


def import_module(name):
    """Import a module; skip the block if it belongs to an optional package."""
    if name.partition(".")[0] in OPTIONAL:
        return pytest.importorskip(name)
    return importlib.import_module(name)


def resolve(node, names):
    """Return what a dotted name stands for; None if it does not begin with an import."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


# ---- Shell


def check_shell(example):
    """Check each command of a shell block without running it."""
    lines = example.parsed.replace("\\\n", " ").splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(example.namespace["folder"])
        for words in (shlex.split(line, comments=True) for line in lines):
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                check_command(words[:end])
                words = words[end + 1 :]


def check_command(words):
    """Check one command."""
    while "=" in words[0]:  # environment variables
        words = words[1:]
    program, *args = words
    if program == "torchrun":
        check_tool("pat-mmdet", args[args.index("pat_mmdet") + 1 :])
    elif program == "pat-mmdet" or (program == "python" and args[0].startswith("tools/")):
        check_tool(program, args)
    elif program == "python" and args[0] == "-c":
        compile(args[1], "-c", "exec")
    elif program == "bash":
        check_script(*args)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert args[0] in targets, f"make {args[0]}: no such target"
    elif program == "pip":
        check_pip(args)
    elif program == "pytest":
        paths = [ROOT / arg for arg in args if arg.startswith("tests/")]
        assert all(path.exists() for path in paths), f"{paths} do not exist"
    else:
        assert program in PROGRAMS, f"unknown command {program!r}"


def check_tool(program, args):
    """Parse the arguments of a tool, and read the config that they name."""
    from pat_mmdet.cli.main import find_commands
    from pat_mmdet.utils import load_config
    from pat_mmdet.utils.paths import CONFIGS, find_config

    name, *args = args
    if program == "pat-mmdet":
        if name.startswith("-"):
            return
        commands = find_commands()
        assert name in commands, f"pat-mmdet has no command {name!r}"
        path = commands[name][0]
    else:
        path = ROOT / name
        assert path.is_file(), f"{name} does not exist"
    parsed = parse(path, args)
    config = getattr(parsed, "config", None)
    if not (config or "").endswith(".py"):  # a placeholder, or a checkpoint with a config inside
        return
    find_config(config)
    if (ROOT / config).is_file() or (CONFIGS / config).is_file():  # the page's own are read above
        load_config(
            config, *(getattr(parsed, name, None) for name in ("cfg_options", "method", "settings"))
        )


def parse(path, args):
    """Return the arguments of a tool as its own parser reads them; None for ``--help``."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *rest):
        raise Parsed(parse_args(parser, *rest))

    errors = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [str(path), *args]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            load_tool(path).main()
        except Parsed as found:
            return found.args[0]
        except SystemExit as end:
            assert end.code == 0, errors.getvalue()
    return None


def check_script(script, *args):
    """Check the command of a shell script, whose flags are those of a tool."""
    assert (ROOT / script).is_file(), f"{script} does not exist"
    if script in SCRIPTS:
        tool, positional, count = SCRIPTS[script]
        check_tool("python", [tool, *args[positional], *args[count:]])


def check_pip(args):
    """Check that the extras of this package which are installed exist."""
    setup = (ROOT / "setup.py").read_text()
    for extras in re.findall(r"^\.\[(.+)\]$", "\n".join(args), re.MULTILINE):
        for extra in extras.split(","):
            assert f'"{extra}": ' in setup, f"no extra {extra!r}"
