"""Small classifiers of timm and mmpretrain, and pairs of them, for tests."""

import copy

import mmpretrain.models  # noqa: F401  (registers its classifiers)
import torch
from helpers.steps import observe_step
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from timm.models import register_model
from timm.models.mlp_mixer import Affine, ResBlock, _create_mixer

from pat_mmdet.models.layers import (
    SqueezeExcite,  # the package registers its networks and distillers
)

SIZE = 64
CLASSES = 5
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

SWIN = dict(embed_dim=8, num_heads=(1, 2, 2, 2), window_size=2, img_size=SIZE)
VIT = dict(embed_dim=12, num_heads=3, img_size=SIZE)
# timm's own names, as small as their arguments allow. Those of Mixer and ResMLP are not free.
TIMM = {
    "swin_tiny_patch4_window7_224": dict(SWIN, depths=(2, 2, 3, 2)),
    "swin_nano_patch4_window7_224": SWIN,
    "swin_pico_patch4_window7_224": SWIN,
    "vit_small_patch16_224": VIT,
    "deit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "small_mixer": dict(img_size=SIZE),
    "small_resmlp": dict(img_size=SIZE),
    "convnext_tiny": dict(depths=(1, 1, 2, 1), dims=(8, 8, 12, 16)),
    "tiny_vit_5m_224": dict(
        embed_dims=(8, 8, 12, 16), num_heads=(1, 1, 1, 2), window_sizes=(16, 4, 2, 2)
    ),
    "resnet50": dict(channels=(4, 4, 8, 8), layers=(1, 2, 1, 1)),
    "resnet18": dict(channels=(8, 8, 12, 16)),
    "mobilenetv2_035": {},
}


@register_model
def small_mixer(pretrained=False, **kwargs):
    return _create_mixer("mixer_b16_224", patch_size=16, num_blocks=12, embed_dim=12, **kwargs)


@register_model
def small_resmlp(pretrained=False, **kwargs):
    layers = dict(mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine)
    return _create_mixer(
        "resmlp_12_224", patch_size=16, num_blocks=12, embed_dim=12, **layers, **kwargs
    )


def timm_classifier(name="resnet18", **options):
    """The config of a small timm network."""
    settings = dict(num_classes=CLASSES, data_preprocessor=dict(IMAGENET))
    return dict(type="TimmClassifier", model_name=name, **{**settings, **TIMM[name], **options})


def image_classifier(backbone, width, head="LinearClsHead", pool=None, **options):
    """The config of an mmpretrain classifier."""
    return dict(
        type="ImageClassifier",
        backbone=backbone,
        neck=dict(type="GlobalAveragePooling", dim=pool) if pool else None,
        head=dict(type=head, num_classes=CLASSES, in_channels=width),
        data_preprocessor=dict(IMAGENET),
        **options,
    )


MM_VIT = dict(
    arch=dict(embed_dims=12, num_layers=12, num_heads=3, feedforward_channels=24),
    img_size=SIZE,
    patch_size=16,
)
MMPRETRAIN = {
    "mm swin": image_classifier(
        dict(
            type="SwinTransformer", img_size=SIZE, window_size=2,
            arch=dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 2]),
        ),
        width=64,
        pool=2,
    ),
    "mm vit": image_classifier(
        dict(type="VisionTransformer", **MM_VIT), width=12, head="VisionTransformerClsHead"
    ),
    "mm vit without class token": image_classifier(
        dict(type="VisionTransformer", with_cls_token=False, out_type="avg_featmap", **MM_VIT),
        width=12,
    ),
    "mm distilled deit": image_classifier(
        dict(type="DistilledVisionTransformer", **MM_VIT), width=12, head="DeiTClsHead"
    ),
    "mm mixer": image_classifier(
        dict(
            type="MlpMixer", img_size=SIZE, patch_size=16,
            arch=dict(embed_dims=12, num_layers=12, tokens_mlp_dims=8, channels_mlp_dims=24),
        ),
        width=12,
        pool=1,
    ),
    "mm convnext": image_classifier(
        dict(type="ConvNeXt", arch=dict(depths=[1, 1, 2, 1], channels=[8, 8, 12, 16])), width=16
    ),
    "mm resnet": image_classifier(
        dict(type="ResNet", depth=18, stem_channels=8, base_channels=8), width=64, pool=2
    ),
    "mm mobilenet": image_classifier(
        dict(type="MobileNetV2", widen_factor=0.25), width=1280, pool=2
    ),
}  # fmt: skip


def config(name, **options):
    """The config of a small network by its name in TIMM or MMPRETRAIN."""
    if name in TIMM:
        return timm_classifier(name, **options)
    return {**copy.deepcopy(MMPRETRAIN[name]), **options}


def build(cfg, seed=0):
    """Builds a model in training mode, with no weight that hides what lies behind it."""
    init_default_scope("mmpretrain")
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    for network in (model.student, model.teacher) if hasattr(model, "distill") else (model,):
        shake(network)
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            # With so few channels it has one hidden unit, which its ReLU might shut for good.
            module.reduce.bias.data.fill_(1.0)
    return model.train()


@torch.no_grad()
def shake(network):
    """Moves weights that are about zero at the beginning: heads, layer scales, last norms."""
    for param in network.parameters():
        if param.abs().max() < 1e-3:
            param += 0.1 * torch.randn_like(param)


def distiller(student="resnet18", teacher="swin_tiny_patch4_window7_224", method="KD", **options):
    """The config of a pair; names or configs of both networks, and options of the method."""
    student, teacher = (config(x) if isinstance(x, str) else x for x in (student, teacher))
    own = ("teacher_checkpoint", "student_stages", "teacher_stages")
    settings = {name: options.pop(name) for name in own if name in options}
    small = dict(
        PAT=dict(raa_grid=2, raa_dim=16),
        OFA=dict(branch="stages"),
        CRD=dict(num_data=20, width=8, num_negatives=6),
        CC=dict(width=8),
        RKD=dict(max_rows=None),
    )
    basic = dict(type=method, input_size=(SIZE, SIZE), **small.get(method, {}))
    return dict(
        type="ClassificationDistiller",
        student=student,
        teacher=teacher,
        method={**basic, **options},
        **{"teacher_checkpoint": None, **settings},
    )


def raw_batch(count=4, size=SIZE, seed=0):
    """Random images with labels, as a data loader gives them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = [
        DataSample(metainfo=dict(sample_idx=10 + i)).set_gt_label(i % CLASSES) for i in range(count)
    ]
    return dict(inputs=images, data_samples=samples)


def batch(model, **options):
    """Random images with labels, as the model takes them."""
    return model.data_preprocessor(raw_batch(**options), True)


def check_prompts(model, data):
    """At β = 0 the prompted teacher is the plain one; another β changes the stages from its own."""
    for _ in range(2):  # the second step has feedback of the first
        step = observe_step(model, data)
        plain, prompted = step.teacher, step.prompted
        assert torch.equal(plain.logits, prompted.logits)
        assert len(plain.features) == 4
        assert all(map(torch.equal, plain.features, prompted.features))
    for stage in range(4):
        with torch.no_grad():
            for name, block in model.distill.prompts.items():
                block.beta.fill_(0.5 if int(name) >= stage else 0.0)
        step = observe_step(model, data)
        plain, prompted = step.teacher, step.prompted
        same = [torch.equal(x, y) for x, y in zip(plain.features, prompted.features)]
        assert same == [True] * stage + [False] * (4 - stage)
        assert not torch.equal(plain.logits, prompted.logits)
