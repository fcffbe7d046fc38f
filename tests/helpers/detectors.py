"""Small pairs of detectors for tests."""

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.utils import load_config

PAIR = "configs/pat/swin_p-res18_digits.py"


def pair_config(**options):
    """The digits pair at 64 pixels with a teacher of random weights."""
    base = {"model.teacher_checkpoint": None, "model.input_size": (64, 64)}
    return load_config(PAIR, {**base, **{key.replace("__", "."): options[key] for key in options}})


def build(cfg, seed=0):
    """Builds a model in training mode."""
    init_default_scope("mmdet")
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.train()


def batch(model, shapes=((3, 64, 64), (3, 64, 64)), num_classes=10, seed=0, with_mask=False):
    """Random images with boxes, as the model takes them."""
    torch.manual_seed(seed)
    data = demo_mm_inputs(
        len(shapes), [list(s) for s in shapes], num_classes=num_classes, with_mask=with_mask
    )
    return model.data_preprocessor(data, True)


def train_step(model, data, optimizer=None):
    """One step; gives the losses by name."""
    losses = model(**data, mode="loss")
    total, _ = model.parse_losses(losses)
    model.zero_grad(set_to_none=True)
    total.backward()
    if optimizer is not None:
        optimizer.step()
    return losses


def trainable(model):
    """The parameters that are to be trained, by name."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}
