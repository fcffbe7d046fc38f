"""The leaf configs of classification, and their networks."""

import copy
from functools import cache

import torch
from helpers.tools import ROOT
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.utils import is_distiller, load_config, teacher_model
from pat_mmdet.utils.tables import load_tables

CONFIGS = ROOT / "configs"
DATA = ("cifar100", "imagenet", "cifar10")
LEAVES = sorted(
    f"{folder}/{path.stem}"
    for folder in ("pat", "students", "teachers")
    for path in (CONFIGS / folder).glob("*.py")
    if path.stem.endswith(tuple(f"_{name}" for name in DATA))
)
OVERLAYS = sorted(path.stem for path in (CONFIGS / "_base_/methods").glob("*.py"))
TIMM_NAMES = dict(
    swin_t="swin_tiny_patch4_window7_224",
    vit_s="vit_small_patch16_224",
    deit_t="deit_tiny_patch16_224",
    mixer_b16="mixer_b16_224",
    convnext_t="convnext_tiny.fb_in1k",
    res50="resnet50",
    res18="resnet18",
    mbv2="mobilenetv2_100",
    resmlp_s12="resmlp_12_224",
    swin_p="swin_pico_patch4_window7_224",
    swin_n="swin_nano_patch4_window7_224",
)
CNNS = ("res18", "mbv2")
# (teacher, student, data) of the pairs in the tables.
PAIRS = [
    (*pair.split("-"), data)
    for data in DATA
    for pair in dict.fromkeys(cell.pair for cell in load_tables()[data].cells.values())
    if "-" in pair
]
PUBLISHED = [pair for pair in PAIRS if pair[2] != "cifar10"]


def read(name, *args):
    return load_config(str(CONFIGS / f"{name}.py"), *args)


@cache
def cached(name):
    return read(name)


def load(name):
    """A config that the test may change."""
    return copy.deepcopy(cached(name))


def pair_name(teacher, student, data):
    return f"pat/{teacher}-{student}_{data}"


def networks(cfg):
    """Configs of the networks that a config trains or learns from."""
    if not is_distiller(cfg):
        return (cfg.model,)
    # A teacher may be the path of a config file.
    cfg.model.teacher = teacher_model(cfg.model.teacher, None)
    return cfg.model.student, cfg.model.teacher


def untrained(cfg):
    """Leaves out weights that would have to be downloaded or trained first."""
    for network in networks(cfg):
        if "model_name" in network:
            network.pretrained = False
    if is_distiller(cfg):
        cfg.model.teacher_checkpoint = None
    return cfg


def shrink(cfg, side=64):
    """Random weights, small images."""
    for network in networks(untrained(cfg)):
        fixed = ("swin", "vit", "deit", "mixer", "resmlp")
        if network.get("model_name", "").startswith(fixed):
            network.img_size = side
        elif "img_size" in network.get("backbone", {}):
            network.backbone.img_size = side
    if is_distiller(cfg):
        cfg.model.method.pop("input_size", None)
        cfg.model.input_size = (side, side)
    return cfg


def build(cfg):
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    return MODELS.build(cfg.model).train()
