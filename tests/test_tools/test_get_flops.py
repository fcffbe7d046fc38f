"""FLOPs, parameters and exchanged bytes of a step, by part."""

import json

import pytest
import torch
from helpers.detectors import build, pair_config
from helpers.tools import ROOT, run_tool
from torch.utils.flop_counter import FlopCounterMode

TOOL = "analysis_tools/get_flops.py"
DETECTION = "configs/pat/swin_p-res18_digits.py"
CLASSIFICATION = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"


def count(tmp_path, *args):
    file = tmp_path / "flops.json"
    output = run_tool(TOOL, *args, "--device", "cpu", "--json", file, cwd=ROOT)
    return json.loads(file.read_text()), output


def total(flops):
    """The sum of the parts."""
    layers = sum(flops["layers_forward"].values()) + flops["layers_backward"]
    return layers + sum(
        value for name, value in flops.items() if name.endswith(("_forward", "_backward"))
        and not name.startswith("layers")
    )  # fmt: skip


def test_detection_with_pat(tmp_path):
    figures, output = count(tmp_path, DETECTION, "--batch-size", 2, "--size", 64)
    flops = figures["flops"]
    assert total(flops) == flops["step"]
    assert flops["kd_step"] == sum(
        flops[name] for name in ("student_forward", "student_backward", "teacher_forward")
    )
    assert figures["step_over_kd"] == flops["step"] / flops["kd_step"] > 1.5
    # A trained network: two products in the backward pass for one in the forward pass, but for the
    # images, which need no gradient. A frozen one: one product.
    assert 1.7 < flops["student_backward"] / flops["student_forward"] < 2
    assert 0.9 < flops["prompted_backward"] / flops["prompted_forward"] < 1.1
    assert set(flops["layers_forward"]) == {"raa", "aligners", "prompts", "hcl_loss"}
    assert all(value > 0 for value in flops["layers_forward"].values())
    assert 1 < flops["layers_backward"] / sum(flops["layers_forward"].values()) < 2.5

    model = build(pair_config())
    expected = {"student": model.student, **dict(model.distill.named_children())}
    for name, module in expected.items():
        number = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert figures["trained_parameters"][name] == number
        assert figures["exchanged_bytes"]["gradients"][name] == 4 * number
    teacher = sum(p.numel() for p in model.teacher.parameters())
    assert figures["parameters"]["teacher"] == teacher
    assert figures["exchanged_bytes"]["gradients"]["teacher"] == 0
    assert figures["exchanged_bytes"]["gathered"] == 0
    assert f"{flops['step'] / 1e9:.2f}" in output and f"{teacher:,}" in output

    # A number of an image meets a row of the weight once for each of its 25 regions.
    patches = sum(embed.weight.numel() for embed in model.distill.raa.embeds)
    assert flops["layers_forward"]["raa"] > 2 * 2 * 25 * patches

    # The student's forward pass of the backbone and pyramid alone, on the same size.
    model.student.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.student.extract_feat(torch.zeros(2, 3, 64, 64))
    assert 0.3 < counter.get_total_flops() / flops["student_forward"] < 1


def test_classification_with_crd(tmp_path):
    figures, output = count(
        tmp_path, CLASSIFICATION, "--method", "crd", "--batch-size", 4,
        "--cfg-options", "model.method.num_data=50", "model.method.num_negatives=8",
    )  # fmt: skip
    flops = figures["flops"]
    assert "prompted_forward" not in flops and total(flops) == flops["step"]
    # Indices, and rows of both networks.
    assert figures["exchanged_bytes"]["gathered"] == 4 * (8 + 2 * 128 * 4)
    assert "MB of rows" in output


def test_attention_is_counted(tmp_path):
    config = "configs/pat/deit_t-res18_imagenet.py"
    figures, _ = count(tmp_path, config, "--method", "kd", "--batch-size", 1)
    # DeiT-T: twelve blocks of width 192 on 16 × 16 patches of 224 pixels, and a class token.
    width, tokens = 192, 197
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    products = (tokens - 1) * 3 * 16 * 16 * width + 12 * block + width * 1000
    assert figures["flops"]["teacher_forward"] == 2 * products


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["configs/students/faster-rcnn_r18_fpn_digits.py"], "has no teacher"),
        ([DETECTION, "--batch-size", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_counted(args, message):
    code = 2 if "--batch-size" in args else 1
    assert message in run_tool(TOOL, *args, code=code, cwd=ROOT)
