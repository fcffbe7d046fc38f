"""Detectors with dense heads, and pairs of detectors of different kinds."""

import copy

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step, trainable
from helpers.one_stage import STRIDES, pair
from helpers.steps import observe_step

from pat_mmdet.utils import load_config

COCO_CROSS = "configs/pat/swin_t_faster-rcnn-res18_retinanet_coco.py"
DENSE = ("RetinaNet", "FCOS", "ATSS", "GFL")


def with_method(cfg, **method):
    cfg.model.method = dict(input_size=(64, 64), **method)
    return cfg


def seen_outputs(model, monkeypatch):
    """The outputs that the method gets in a step."""
    seen = {}

    def forward(student, teacher, frozen_teacher):
        seen.update(student=student, teacher=teacher)
        return {}

    monkeypatch.setattr(model.distill, "forward", forward)
    return seen


@pytest.mark.parametrize("kind", DENSE)
def test_pat_trains_dense_pairs(kind):
    model = build(pair(kind, kind))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    data = batch(model)
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    for _ in range(2):
        losses = train_step(model, data, optimizer)
    assert {"loss_cls", "loss_bbox", "loss_kd", "loss_fd", "loss_reg"} <= set(losses)
    for name, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
    after = model.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("method", ["DKD", "FitNet"])
def test_methods_train_a_dense_pair(method):
    model = build(with_method(pair("RetinaNet", "RetinaNet"), type=method))
    losses = train_step(model, batch(model))
    own = [value for key, value in losses.items() if key in ("loss_kd", "loss_fd")]
    assert own and all(torch.isfinite(value) and value > 0 for value in own)
    assert all(param.grad is not None for param in trainable(model).values())


@pytest.mark.parametrize(
    ("student", "teacher"), [("ATSS", "FCOS"), ("FCOS", "ATSS"), ("GFL", "ATSS")]
)
def test_comparable_heads(student, teacher):
    model = build(pair(student, teacher))
    losses = train_step(model, batch(model))
    assert torch.isfinite(losses["loss_kd"]) and losses["loss_kd"] > 0


@pytest.mark.parametrize("kind", DENSE)
def test_score_alignment(kind, monkeypatch):
    """With the same weights in both networks, the scores are the same."""
    cfg = pair(kind, kind)
    cfg.model.teacher = copy.deepcopy(cfg.model.student)
    for model in (cfg.model.student, cfg.model.teacher):
        model.backbone.norm_eval = True
    model = build(cfg)
    model.teacher.load_state_dict(model.student.state_dict())
    seen = seen_outputs(model, monkeypatch)
    data = batch(model)
    calls = []
    model.student.bbox_head.register_forward_hook(lambda module, args, out: calls.append(out[0]))
    model(**data, mode="loss")
    student, teacher = seen["student"], seen["teacher"]
    assert len(calls) == 1, "the student's head must run once"
    assert student.logits.shape == teacher.logits.shape
    assert student.logits.shape[1] == 11 and not student.logits[:, -1].any()
    torch.testing.assert_close(student.logits, teacher.logits)
    assert student.logits.requires_grad and not teacher.logits.requires_grad
    assert student.labels.shape == (len(student.logits),)
    priors = model.student.bbox_head.prior_generator.num_base_priors[0]
    assert len(student.logits) == min(1024, 2 * priors * (64 + 16 + 4 + 1 + 1))


def test_foreground_comes_first(monkeypatch):
    model = build(with_method(pair("ATSS", "ATSS"), type="KD"))
    monkeypatch.setattr("pat_mmdet.models.task_modules.score_readers._LOCATIONS_PER_IMAGE", 20)
    seen = seen_outputs(model, monkeypatch)
    labels = []
    model.student.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, args: labels.append(args[1])
    )
    model(**batch(model), mode="loss")
    foreground = sum(int((x < 10).sum()) for x in labels)
    assert 0 < foreground < 40
    kept = seen["student"].labels
    assert len(kept) == 40 and int((kept < 10).sum()) == foreground
    # The rest are those where the teacher is surest.
    rest = seen["teacher"].logits[kept == 10, :10].amax(1)
    with torch.no_grad():
        features = model.teacher.extract_feat(batch(model)["inputs"])
        scores = [
            x.permute(0, 2, 3, 1).reshape(-1, 10) for x in model.teacher.bbox_head(features)[0]
        ]
    best = torch.cat(scores).amax(1)[torch.cat(labels) == 10].sort(descending=True).values
    torch.testing.assert_close(rest.sort(descending=True).values, best[: len(rest)])


def test_softmax_scores_are_taken_as_they_are(monkeypatch):
    cfg = with_method(pair("RetinaNet", "RetinaNet"), type="KD")
    for model in (cfg.model.student, cfg.model.teacher):
        model.bbox_head.loss_cls = dict(type="CrossEntropyLoss")
    model = build(cfg)
    seen = seen_outputs(model, monkeypatch)
    model(**batch(model), mode="loss")
    assert seen["student"].logits.shape[1] == seen["teacher"].logits.shape[1] == 11
    assert seen["student"].logits[:, -1].any()


@pytest.mark.parametrize(
    ("student", "teacher", "method", "message"),
    [
        ("RetinaNet", "FasterRCNN", "KD", r"RetinaHead and .* StandardRoIHead score different"),
        ("FasterRCNN", "RetinaNet", "PAT", r"StandardRoIHead and .* RetinaHead score different"),
        ("RetinaNet", "ATSS", "DKD", r"9 and 1 anchors or points at each location.*--method pkd"),
        ("RetinaNet", "RetinaNet", "OFA", r"has no embedding of objects"),
        ("RetinaNet", "RetinaNet", "RKD", r"has no embedding of objects"),
        ("FCOS", "FCOS", "CRD", r"CRD keeps a memory .* drawn anew"),
    ],
)
def test_heads_that_cannot_be_compared(student, teacher, method, message):
    options = {} if student == "FCOS" else {"feature_strides": [8, 16, 32]}
    cfg = with_method(pair(student, teacher), type=method)
    cfg.model.update(options)
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_other_anchors_or_classes_are_refused():
    cfg = pair("RetinaNet", "RetinaNet")
    cfg.model.teacher.bbox_head.anchor_generator.octave_base_scale = 3
    with pytest.raises(ValueError, match="their anchors have other sizes"):
        build(cfg)
    cfg = pair("ATSS", "ATSS")
    cfg.model.teacher.bbox_head.num_classes = 7
    with pytest.raises(ValueError, match=r"student has 11 classes .* teacher 8"):
        build(cfg)
    cfg = pair("ATSS", "FCOS", model__feature_strides=[8, 16])
    cfg.model.teacher.neck.num_outs = 4
    cfg.model.teacher.bbox_head.strides = STRIDES[:4]
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32, 64, 128\] and \[8, 16, 32, 64\]"):
        build(cfg)


def test_custom_head_loss():
    cfg = pair("ATSS", "ATSS")
    cfg.model.student.bbox_head.type = "PAAHead"
    cfg.model.student.bbox_head.loss_centerness = dict(type="CrossEntropyLoss", use_sigmoid=True)
    cfg.model.student.type = "PAA"
    assigner = pair("RetinaNet", "RetinaNet").model.student.train_cfg.assigner
    cfg.model.student.train_cfg.assigner = assigner
    with pytest.raises(ValueError, match="dense head PAAHead, whose class scores cannot be read"):
        build(cfg)
    model = build(with_method(cfg, type="PKD"))
    assert train_step(model, batch(model))["loss_fd"] > 0


@pytest.mark.parametrize(
    ("kinds", "method"),
    [(("RetinaNet", "FasterRCNN"), "FitNet"), (("FasterRCNN", "RetinaNet"), "PAT")],
)
def test_cross_head_features(kinds, method, monkeypatch):
    cfg = pair(*kinds, model__feature_strides=[8, 16, 32])
    model = build(with_method(cfg, type=method, kd_weight=0.0))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    for _ in range(2):
        losses = train_step(model, batch(model), optimizer)
        expected = {"loss_fd", "loss_reg"} if method == "PAT" else {"loss_fd"}
        assert {key for key in losses if key in ("loss_fd", "loss_reg", "loss_kd")} == expected
    for name, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
    seen = seen_outputs(model, monkeypatch)
    model(**batch(model), mode="loss")
    shapes = [x.shape[-2:] for x in seen["student"].features]
    assert shapes == [x.shape[-2:] for x in seen["teacher"].features]
    assert shapes == [(8, 8), (4, 4), (2, 2)]
    assert seen["student"].logits is None


def test_reg_loss_of_prompts(monkeypatch):
    """Without the student's places, L_Reg reads the teacher at its own proposals."""
    cfg = pair("RetinaNet", "FasterRCNN", model__feature_strides=[8, 16, 32])
    model = build(with_method(cfg, type="PAT", kd_weight=0.0))
    data = batch(model)
    assert train_step(model, data)["loss_reg"] == 0, "the prompts begin as zero"
    for block in model.distill.prompts.values():
        torch.nn.init.constant_(block.beta, 2.0)
    losses = train_step(model, data)
    assert losses["loss_reg"] > 0
    torch.autograd.grad(
        model(**data, mode="loss")["loss_reg"], [b.beta for b in model.distill.prompts.values()]
    )
    monkeypatch.setattr(
        model.teacher.roi_head, "_bbox_forward", lambda *args: pytest.fail("nobody asked for this")
    )
    off = build(with_method(cfg, type="PAT", kd_weight=0.0, reg_weight=0.0))
    assert off.frozen_teacher.score_reader is None
    losses = observe_step(off, batch(off)).losses
    assert "loss_fd" in losses and not {"loss_kd", "loss_reg"} & set(losses)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        (None, r"strides \[8, 16, 32, 64, 128\] and the teacher 4 with \[4, 8, 16, 32\]"),
        ([4, 8], r"feature_strides=\(4, 8\): the student's feature levels have the strides \[8"),
        ([], r"feature_strides=\(\).*name some that both networks have"),
    ],
)
def test_levels_that_cannot_be_paired(strides, message):
    cfg = with_method(pair("RetinaNet", "FasterRCNN"), type="PKD")
    cfg.model.feature_strides = strides
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_stage_level_pairing():
    model = build(pair("ATSS", "ATSS"))
    # Stage outputs at the strides 4, 8, 16, 32, levels at 8 to 128.
    assert model.distill.stage_features == (0, 0, 1, 2)
    model = build(pair_config())
    assert model.distill.stage_features == (0, 1, 2, 3)
    cfg = pair_config()
    cfg.model.teacher = copy.deepcopy(cfg.model.student)
    assert build(cfg).distill.stage_features == (0, 1, 2, 3)


def test_some_levels_of_equal_pyramids():
    model = build(pair_config(model__feature_strides=[4, 16]))
    assert len(model.distill.aligners) == 2
    assert model.distill.stage_features == (0, 0, 1, 1)
    assert torch.isfinite(train_step(model, batch(model))["loss_fd"])


def test_logit_methods_take_any_levels():
    cfg = with_method(pair_config(), type="KD")
    cfg.model.student.neck.num_outs = 5
    cfg.model.student.rpn_head.anchor_generator.strides = [4, 8, 16, 32, 64]
    model = build(cfg)
    assert train_step(model, batch(model))["loss_kd"] > 0


def test_cross_pair_of_coco_compares_p3_to_p6():
    cfg = load_config(COCO_CROSS)
    assert cfg.model.method.kd_weight == 0
    with pytest.raises(ValueError, match="--method pkd, cwd or mgd"):
        cfg = load_config(COCO_CROSS, {"model.teacher_checkpoint": None}, "kd")
        for role in (cfg.model.student, cfg.model.teacher):
            role.backbone.pop("init_cfg")
        build(cfg)


def test_teacher_alone_decides_its_proposals():
    model = build(
        with_method(
            pair("ATSS", "FasterRCNN", model__feature_strides=[8, 16, 32]),
            type="PAT",
            kd_weight=0.0,
        )
    )
    step = observe_step(model, batch(model))
    assert step.teacher.logits.shape[1] == 11 and 0 < len(step.teacher.logits) <= 1024
    assert not step.teacher.logits.requires_grad
    assert torch.equal(step.prompted.logits, step.teacher.logits)


def test_export_of_dense_student():
    model = build(pair("GFL", "GFL"))
    state = model.state_dict()
    assert any(key.startswith("bbox_head.gfl_cls") for key in state)
    assert not any("teacher" in key for key in state)
