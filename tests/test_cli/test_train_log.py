"""Backends that ``train --log`` adds."""

import sys
from importlib.machinery import ModuleSpec

import pytest
from helpers.tools import ROOT
from mmengine.config import Config
from mmengine.registry import VISBACKENDS, VISUALIZERS, init_default_scope

from pat_mmdet.cli import train
from pat_mmdet.utils import load_config

PAIR = "pat/swin_p-res18_digits.py"
LOCAL = dict(type="LocalVisBackend")
TENSORBOARD = dict(type="TensorboardVisBackend")
MLFLOW = dict(type="EnvMLflowVisBackend")
OWN = dict(type="WandbVisBackend", init_kwargs=dict(project="mine"))


@pytest.mark.parametrize(
    ("before", "names", "after"),
    [
        ([LOCAL], [], [LOCAL]),
        ([LOCAL], ["tensorboard", "mlflow", "mlflow"], [LOCAL, TENSORBOARD, MLFLOW]),
        ([LOCAL, OWN], ["wandb", "tensorboard"], [LOCAL, OWN, TENSORBOARD]),
        (None, ["tensorboard"], [TENSORBOARD]),
    ],
)
def test_backends_are_added(before, names, after, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    cfg = Config(dict(visualizer=dict(type="Visualizer", name="a", vis_backends=before)))
    train.add_backends(cfg, names)
    assert cfg.visualizer == dict(type="Visualizer", name="a", vis_backends=after)


def test_config_without_a_visualizer(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    cfg = Config(dict(visualizer=None))
    train.add_backends(cfg, ["tensorboard"])
    assert cfg.visualizer.vis_backends == [LOCAL, TENSORBOARD]


@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None, is_package=True)])
def test_missing_packages(spec, monkeypatch, tmp_path):
    """The second one is a folder of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "argv", ["train", PAIR, "--log", "wandb", "mlflow"])
    message = "error: --log: wandb, mlflow not installed; pip install wandb mlflow"
    with pytest.raises(SystemExit, match=f"^{message}$"):
        train.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scope", ["mmdet", "mmpretrain"])
def test_tracking_uri_comes_from_the_environment(scope, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    init_default_scope(scope)
    backend = VISBACKENDS.build(dict(MLFLOW, save_dir=str(tmp_path)))
    assert backend._tracking_uri == "https://me:secret@host"


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    cfg = load_config(str(ROOT / "configs" / PAIR))
    train.add_backends(cfg, ["tensorboard"])
    init_default_scope("mmdet")
    visualizer = VISUALIZERS.build({**cfg.visualizer, "name": "log", "save_dir": str(tmp_path)})
    visualizer.add_scalar("loss", 1.0, step=1)
    visualizer.close()
    files = {path.name.partition(".")[0] for path in (tmp_path / "vis_data").iterdir()}
    assert files == {"events", "scalars"}
