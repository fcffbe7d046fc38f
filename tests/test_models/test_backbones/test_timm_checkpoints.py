"""Weights as timm and the authors of its networks save them, now and in older versions."""

import re
from itertools import product

import pytest
import safetensors.torch
import torch
from helpers.classifiers import SIZE, batch, build, config, distiller
from mmengine.registry import MODELS

from pat_mmdet.models.classifiers import PretrainedTimmClassifier
from pat_mmdet.utils import load_weights

SWIN = "swin_tiny_patch4_window7_224"


def old_swin(state):
    """Before timm 0.8: a stage ends with its downsampling, and masks are saved."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(
            r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        renamed[key.replace("head.fc.", "head.")] = value
    for key in [key for key in renamed if key.endswith("bias_table")]:
        block = key[: -len("attn.relative_position_bias_table")]
        renamed[block + "attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
        if ".blocks.1." in key:
            renamed[block + "attn_mask"] = torch.zeros(64, 4, 4)
    return renamed


def old_vit(state):
    """The first files: patches were cut by hand for a linear layer, and pre-logits are left."""
    weight = state["patch_embed.proj.weight"].flatten(1)
    rest = {"pre_logits.fc.weight": torch.zeros(4, 4), "pre_logits.fc.bias": torch.zeros(4)}
    return {**state, "patch_embed.proj.weight": weight, **rest}


def original_resmlp(state):
    """As its authors saved it."""
    names = {"stem.": "patch_embed.", "linear_tokens.": "attn.", "mlp_channels.": "mlp."}
    renamed = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        key = re.sub(r"ls(\d)", r"gamma_\1", key)
        renamed[key] = value.flatten() if key.endswith((".alpha", ".beta")) else value
    return renamed


def original_convnext(state):
    """As its authors saved it."""
    patterns = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )
    renamed = {}
    for key, value in state.items():
        for pattern, theirs in patterns:
            key = re.sub(pattern, theirs, key)
        renamed[key] = value
    return renamed


OLD = {
    SWIN: old_swin,
    "vit_small_patch16_224": old_vit,
    "deit_tiny_distilled_patch16_224": old_vit,
    "small_resmlp": original_resmlp,
    "convnext_tiny": original_convnext,
}
TODAY = (*OLD, "small_mixer", "resnet50", "resnet18", "mobilenetv2_035")


@pytest.fixture(scope="module")
def networks():
    """A network and its logits for each name, all with other weights than those that load them."""
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    made = {}
    for name in TODAY:
        network = build(config(name), seed=11).eval()
        with torch.no_grad():
            made[name] = (network.model.state_dict(), network(images))
    return images, made


def check(networks, name, path):
    """A network that takes the weights gives the logits that belong to them."""
    images, made = networks
    network = build(config(name), seed=12).eval()
    with torch.no_grad():
        assert not torch.equal(network(images), made[name][1])
        load_weights(network, str(path))
        assert torch.equal(network(images), made[name][1])


@pytest.mark.parametrize(("name", "nested"), [*product(OLD, ["model"]), (SWIN, None)])
def test_older_timm_files(networks, tmp_path, name, nested):
    state = networks[1][name][0]
    old = OLD[name](state)
    assert {key: value.shape for key, value in old.items()} != {
        key: value.shape for key, value in state.items()
    }
    torch.save({nested: old, "epoch": 3} if nested else old, tmp_path / "old.pth")
    check(networks, name, tmp_path / "old.pth")


@pytest.mark.parametrize(("name", "nested"), [*product(TODAY, ["state_dict"]), (SWIN, None)])
def test_current_timm_files(networks, tmp_path, name, nested):
    state = networks[1][name][0]
    torch.save({nested: state} if nested else state, tmp_path / "new.pth")
    check(networks, name, tmp_path / "new.pth")


@pytest.mark.parametrize("name", ["small_resmlp", "resnet18"])
def test_safetensors(networks, tmp_path, name):
    state = {key: value.contiguous() for key, value in networks[1][name][0].items()}
    safetensors.torch.save_file(state, tmp_path / "new.safetensors")
    check(networks, name, tmp_path / "new.safetensors")
    if name in OLD:
        old = {key: value.clone() for key, value in OLD[name](state).items()}
        safetensors.torch.save_file(old, tmp_path / "old.safetensors")
        check(networks, name, tmp_path / "old.safetensors")


def test_truncated_safetensors_are_refused(networks, tmp_path):
    path = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(networks[1]["resnet18"][0], path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"broken.safetensors' \(\d+ bytes\) cannot be read"):
        load_weights(build(config("resnet18")), str(path))


def test_mmpretrain_checkpoint(networks, tmp_path):
    network = build(config(SWIN), seed=11)
    torch.save(dict(state_dict=network.state_dict()), tmp_path / "runner.pth")
    check(networks, SWIN, tmp_path / "runner.pth")


@pytest.mark.parametrize("name", [SWIN, "small_resmlp", "resnet18"])
def test_other_architecture_is_refused(networks, tmp_path, name):
    network = build(config(name))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for other in TODAY:
        state = networks[1][other][0]
        for kind in (OLD.get(other), None):
            if other == name:
                continue
            torch.save(kind(state) if kind else state, tmp_path / "other.pth")
            message = r"other.pth' does not fit TimmClassifier: \d+ of \d+ keys are missing"
            with pytest.raises(ValueError, match=message) as error:
                load_weights(network, str(tmp_path / "other.pth"))
            assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "key", "old"),
    [
        (SWIN, dict(window_size=4), "relative_position_bias_table", True),
        ("vit_small_patch16_224", dict(img_size=96), "pos_embed", False),
        ("vit_small_patch16_224", dict(patch_size=8), "patch_embed.proj.weight", True),
        ("vit_small_patch16_224", dict(num_classes=7), "head.weight", False),
    ],
)
def test_other_size_is_refused(tmp_path, name, options, key, old):
    # timm would interpolate the tables, and the teacher would no longer be the one it was.
    state = build(config(name, **options)).model.state_dict()
    torch.save(OLD[name](state) if old else state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"have another shape \(.*{key} \(.* instead of \("):
        load_weights(build(config(name)), str(tmp_path / "other.pth"))


def test_old_file_as_teacher_checkpoint(networks, tmp_path):
    state, _ = networks[1][SWIN]
    torch.save(dict(model=old_swin(state)), tmp_path / "swin.pth")
    cfg = distiller(teacher=SWIN, method="PAT", teacher_checkpoint=str(tmp_path / "swin.pth"))
    model = MODELS.build(cfg).train()  # not `build`, which moves weights
    loaded = model.teacher.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert torch.isfinite(model(**batch(model), mode="loss")["loss_fd"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(checkpoint_path="no.pth"), r"^checkpoint_path='no.pth' does not exist; check"),
        (
            dict(pretrained=True, pretrained_cfg_overlay=dict(file="no.pth")),
            r"^pretrained_cfg_overlay.file='no.pth' does not exist; check",
        ),
    ],
)
def test_missing_weights_of_timm(options, message):
    with pytest.raises(FileNotFoundError, match=message):
        PretrainedTimmClassifier(model_name="tf_efficientnet_lite0", **options)
