import pytest
import torch
from helpers.modules import Toy
from mmdet.models.backbones import SwinTransformer
from torch import nn

from pat_mmdet.models.backbones import HeadlessMobileNetV2
from pat_mmdet.models.task_modules import Stage, backbone_stages, resolve
from pat_mmdet.models.task_modules.stages import map_to_tokens, tokens_to_map


@pytest.mark.parametrize("size", [(3, 5), (1, 7), (6, 2)])
def test_tokens_and_maps_round_trip(size):
    height, width = size
    features = torch.randn(2, 4, height, width)
    tokens = map_to_tokens(features)
    assert tokens.shape == (2, height * width, 4)
    assert torch.equal(tokens_to_map(tokens, size), features)
    for row in range(height):
        for column in range(width):
            assert torch.equal(tokens[:, row * width + column], features[:, :, row, column])
    other = torch.randn(2, height * width, 4)
    assert torch.equal(map_to_tokens(tokens_to_map(other, torch.Size(size))), other)


def test_tokens_of_another_size_are_refused():
    with pytest.raises(RuntimeError):
        tokens_to_map(torch.randn(1, 12, 3), (3, 5))


@pytest.mark.parametrize(
    ("path", "close"),
    [
        ("stage.1", "stages.1"),
        ("stages.3", "stages.2"),
        ("backbone.stages.0", "stages.0"),
        ("heads", "head"),
        ("zzzzzzzz", "stem"),
    ],
)
def test_wrong_path_suggestions(path, close):
    with pytest.raises(ValueError, match=f"^Toy has no module '{path}'. Paths that come") as error:
        resolve(Toy(), path)
    assert close in str(error.value).split("come close: ")[1].split(", ")


def test_right_path_is_resolved():
    toy = Toy()
    assert resolve(toy, "stages.1") is toy.stages[1]
    assert resolve(toy, "") is toy


def test_stages_of_a_derived_class_and_prefix():
    class Mine(HeadlessMobileNetV2):
        pass

    mine = Mine(widen_factor=0.25, out_indices=(1, 2, 4, 6))
    assert backbone_stages(mine, "net.body")[1] == Stage(
        "net.body.layer3", "NCHW", output_module="net.body.layer3"
    )
    swin = SwinTransformer(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
    assert [stage.layout for stage in backbone_stages(swin)] == ["NLC"] * 4
    with pytest.raises(
        ValueError, match=r"Linear are not known \(known: ConvNeXt, EfficientNet, MlpMixer"
    ):
        backbone_stages(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="unknown layout 'NWHC'"):
        Stage("a", "NWHC")
