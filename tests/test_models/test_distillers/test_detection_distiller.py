import copy
import itertools

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step, trainable
from helpers.steps import observe_step
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict

from pat_mmdet.models.distillers import eval_mode
from pat_mmdet.models.distillers.detection import _extract_in_float32


@pytest.fixture(scope="module")
def model():
    return build(pair_config())


@pytest.fixture
def fresh(model):
    return copy.deepcopy(model)


def teacher_state(model):
    teacher = model.teacher
    return {
        name: value.clone()
        for name, value in itertools.chain(teacher.named_parameters(), teacher.named_buffers())
    }


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def beta(model):
    return torch.stack([block.beta for block in model.distill.prompts.values()])


def test_state_dict_keys(model):
    state = model.state_dict()
    plain = MODELS.build(pair_config().model.student).state_dict()
    assert set(plain) <= set(state)
    rest = set(state) - set(plain)
    assert rest and all(key.startswith("distill.") for key in rest)
    student = model.student.state_dict()
    assert all(torch.equal(state[key], student[key]) for key in plain)


def test_inherited_heads():
    options = dict(alignment="identity", inherit_heads=True, distance="mse", afp_stages=())
    model = build(pair_config(**{f"model__method__{key}": options[key] for key in options}))
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    inherited = {
        name for name in student if name in teacher and torch.equal(student[name], teacher[name])
    }
    assert {name.partition(".")[0] for name in inherited} == {"neck", "rpn_head", "roi_head"}
    assert {name for name in student if name.startswith(("rpn_head", "roi_head"))} <= inherited
    # Those of the backbone are the student's own, as are the convolutions that read them.
    plain = build(pair_config()).student.state_dict()
    assert_equal_states(
        {name: student[name] for name in student if name not in inherited},
        {name: plain[name] for name in student if name not in inherited},
    )
    # Weights that were loaded or trained stay.
    with torch.no_grad():
        model.student.roi_head.bbox_head.fc_cls.weight.zero_()
    model.init_weights()
    assert not model.student.roi_head.bbox_head.fc_cls.weight.any()
    assert not list(model.distill.parameters())  # levels of equal width need no projection


def test_checkpoint_round_trip(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other = build(pair_config(), seed=1)
    assert not torch.equal(other.state_dict()["neck.fpn_convs.0.conv.weight"],
                           state["neck.fpn_convs.0.conv.weight"])  # fmt: skip
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())

    ema = ExponentialMovingAverage(build(pair_config(), seed=2), update_buffers=True)
    averaged = ema.state_dict()
    assert {"module." + key for key in state} | {"steps"} == set(averaged)
    ema.load_state_dict({**{"module." + k: v for k, v in state.items()}, "steps": ema.steps})
    assert all(torch.equal(ema.module.state_dict()[key], state[key]) for key in state)

    third = build(pair_config(), seed=3)
    load_state_dict(third, dict(state), strict=True)
    assert all(torch.equal(value, state[key]) for key, value in third.state_dict().items())


def test_plain_student_checkpoint_loads(fresh):
    plain = build(type("Cfg", (), {"model": pair_config().model.student}), seed=5)
    result = fresh.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("distill.") for key in result.missing_keys)
    assert torch.equal(fresh.student.neck.fpn_convs[0].conv.weight,
                       plain.neck.fpn_convs[0].conv.weight)  # fmt: skip


def test_teacher_is_outside_module_tree(fresh):
    teachers = {id(param) for param in fresh.teacher.parameters()}
    assert not teachers & {id(param) for param in fresh.parameters()}
    assert not any(param.requires_grad for param in fresh.teacher.parameters())
    assert not any(module.training for module in fresh.teacher.modules())
    fresh.train()
    assert not any(module.training for module in fresh.teacher.modules())
    assert copy.deepcopy(fresh).teacher is fresh.teacher
    own = build(pair_config())
    own.double()
    assert next(own.teacher.parameters()).dtype == torch.float64


def test_eval_mode_restores_the_modes():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    with eval_mode(network):
        assert not network.training and not torch.is_grad_enabled()
    assert network.training and not network[1].training


def test_student_begins_as_it_does_alone():
    cfg = pair_config()
    distilled = build(cfg, seed=4)
    random_state = torch.get_rng_state()
    cfg.model = cfg.model.student
    alone = build(cfg, seed=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    state = distilled.state_dict()
    assert all(torch.equal(state[key], value) for key, value in alone.state_dict().items())


@pytest.mark.parametrize(
    ("prompt", "feedback"),
    [("channel", "previous"), ("channel", "none"), ("spatial", "current")],
)
def test_gradients_of_second_step(prompt, feedback):
    model = build(pair_config(model__method__prompt=prompt, model__method__feedback=feedback))
    before = teacher_state(model)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-2)
    data = batch(model)
    assert torch.count_nonzero(beta(model)) == 0
    for _ in range(2):
        losses = train_step(model, data, optimizer)
    for name, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
    assert torch.count_nonzero(beta(model)) == len(beta(model))
    prompter_grads = [
        param.grad.abs().sum()
        for name, param in trainable(model).items()
        if "prompts" in name and "prompter" in name
    ]
    assert torch.stack(prompter_grads).count_nonzero() > 0.8 * len(prompter_grads)
    assert {"loss_kd", "loss_fd", "loss_reg"} < set(losses)
    after = teacher_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in model.teacher.modules())


@pytest.mark.parametrize("prompt", ["channel", "spatial"])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_prompted_teacher_at_beta_zero(prompt, backbone):
    cfg = pair_config(model__method__prompt=prompt)
    if backbone == "resnet":
        cfg.model.teacher = copy.deepcopy(cfg.model.student)
    model = build(cfg)
    images = torch.randn(2, 3, 64, 64)
    rois = torch.tensor([[0, 3.3, 4.4, 30.5, 40.1], [1, 10, 8, 60, 61]])
    feedback = [torch.randn(2, 64, 16, 16) for _ in range(4)]

    def prompting(index, x):
        block = model.distill.prompts[str(index)]
        return block(x, block.encode_feedback(feedback[index], x.shape[-2:]))

    with torch.no_grad():
        activations = {"rois": [rois], "features": [[images] * 5]}
        teacher = model.frozen_teacher
        plain = teacher.forward(images, [None] * len(images), activations)
        prompted = teacher.forward_prompted(prompting)
        for block in model.distill.prompts.values():
            block.beta.fill_(0.5)
        changed = teacher.forward_prompted(prompting, num_images=None)
    for x, y in zip((*plain.features, plain.logits), (*prompted.features, prompted.logits)):
        assert torch.equal(x, y)
    assert not torch.equal(plain.features[0], changed.features[0])
    assert not torch.equal(plain.logits, changed.logits)


def test_student_losses(fresh):
    data = batch(fresh)
    torch.manual_seed(3)
    with torch.no_grad():
        alone = copy.deepcopy(fresh).student(**copy.deepcopy(data), mode="loss")
    torch.manual_seed(3)
    with torch.no_grad():
        distilled = fresh(**data, mode="loss")
    for name, value in alone.items():
        values = value if isinstance(value, list) else [value]
        others = distilled[name] if isinstance(value, list) else [distilled[name]]
        assert all(torch.equal(x, y) for x, y in zip(values, others)), name


def test_logits_are_those_of_the_same_rois(fresh):
    rois = []
    fresh.student.roi_head.bbox_roi_extractor.register_forward_pre_hook(
        lambda module, args: rois.append(args[1])
    )
    data = batch(fresh)
    step = observe_step(fresh, data)
    student, teacher = step.student, step.teacher
    assert len(rois) == 1, "the student's RoI head must run once"
    assert student.logits.shape == teacher.logits.shape == (len(rois[0]), 11)
    assert student.labels.shape == (len(rois[0]),) and student.labels.max() <= 10
    assert student.logits.requires_grad and not teacher.logits.requires_grad
    with torch.no_grad():
        features = fresh.teacher.extract_feat(data["inputs"])
        expected = fresh.teacher.roi_head._bbox_forward(features, rois[0])["cls_score"]
    assert torch.equal(teacher.logits, expected)
    assert all(x.shape == y.shape for x, y in zip(student.features, teacher.features))


def test_nothing_recorded_outlives_the_step(fresh):
    train_step(fresh, batch(fresh))
    assert fresh._recorder._activations is None
    assert fresh.frozen_teacher._prompter._prompt is None
    assert fresh.frozen_teacher._images is None
    assert all(not value.requires_grad for value in fresh.distill._previous.values())


@pytest.mark.parametrize(
    ("dtype", "prompt"), [(torch.bfloat16, "channel"), (torch.float16, "spatial")]
)
def test_half_precision_is_finite(dtype, prompt):
    model = build(pair_config(model__method__prompt=prompt))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    data = batch(model)
    for _ in range(2):
        with torch.autocast("cpu", dtype=dtype):
            losses = model(**data, mode="loss")
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for name, value in losses.items():
            values = value if isinstance(value, list) else [value]
            assert all(torch.isfinite(item).all() for item in values), name
        assert losses["loss_fd"].dtype == losses["loss_kd"].dtype == torch.float32


def test_batches_of_other_and_mixed_sizes(fresh):
    optimizer = torch.optim.SGD(trainable(fresh).values(), lr=1e-3)
    for shapes in (
        [(3, 64, 64)] * 2,
        [(3, 96, 64), (3, 64, 100), (3, 50, 70)],
        [(3, 64, 128)],
    ):
        losses = train_step(fresh, batch(fresh, shapes), optimizer)
        assert torch.isfinite(losses["loss_fd"])


def test_roi_extraction_dtype_and_layout():
    features = [torch.randn(1, 4, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)]
    rois = torch.tensor([[0, 905.4, 3.0, 1000.2, 40.0]], dtype=torch.float64)
    out, boxes = _extract_in_float32(None, (features, rois))
    assert out[0].dtype == torch.float32 and out[0].is_contiguous()
    assert boxes.dtype == torch.float32 and abs(float(boxes[0, 1]) - 905.4) < 1e-3


def test_channels_last_roi_extraction(fresh):
    extractor = fresh.student.roi_head.bbox_roi_extractor
    features = [torch.randn(2, 64, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    rois = torch.tensor([[0, 2.5, 3.5, 33.0, 41.0], [1, 0.0, 0.0, 20.0, 20.0]])
    expected = extractor(features, rois)
    permuted = [x.to(memory_format=torch.channels_last) for x in features]
    assert torch.equal(extractor(permuted, rois), expected)


def test_teacher_normalization():
    cfg = pair_config()
    cfg.model.teacher.data_preprocessor.update(mean=[10.0, 20, 30], std=[2.0, 4, 8])
    cfg.model.teacher.data_preprocessor.bgr_to_rgb = False
    model = build(cfg)
    shapes = [(3, 64, 40), (3, 50, 64)]
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    raw = demo_mm_inputs(2, [list(shape) for shape in shapes], num_classes=10)
    for sample, shape in zip(raw["data_samples"], shapes):
        sample.set_metainfo(dict(img_shape=shape[1:]))
    expected = model.teacher.data_preprocessor(copy.deepcopy(raw), True)["inputs"]
    data = model.data_preprocessor(raw, True)
    images = model.frozen_teacher.renormalise(data["inputs"], data["data_samples"])
    assert not torch.equal(images, data["inputs"])
    torch.testing.assert_close(images, expected, atol=1e-3, rtol=1e-4)
    assert torch.count_nonzero(images[0, :, :, 40:]) == 0


def test_equal_normalization(model):
    inputs = torch.randn(1, 3, 64, 64)
    assert model.frozen_teacher.renormalise(inputs, []) is inputs


def test_previous_feedback(fresh, monkeypatch):
    distill = fresh.distill
    assert distill.resume_state() == {}
    train_step(fresh, batch(fresh))
    state = distill.resume_state()
    assert set(state) == {"0", "1", "2", "3"}
    assert all(value.shape[:2] == (2, 64) for value in state.values())
    other = build(pair_config())
    other.distill.load_resume_state(state)
    assert all(torch.equal(other.distill._previous[key], state[key]) for key in state)
    spatial = build(pair_config(model__method__prompt="spatial"))
    train_step(spatial, batch(spatial))
    assert spatial.distill._previous and spatial.distill.resume_state() == {}
    said = []
    monkeypatch.setattr(
        "pat_mmdet.models.methods.pat.print_log", lambda *args: said.append(args[0])
    )
    other.distill.load_resume_state(state)
    spatial.distill.load_resume_state({})
    assert len(said) == 1 and "begins with zeros" in said[0]


def test_chosen_stages_only():
    model = build(pair_config(model__method__afp_stages=(1, 3)))
    assert set(model.distill.prompts) == {"1", "3"}
    train_step(model, batch(model))
    assert set(model.distill._previous) == {"1", "3"}


def test_loss_weights():
    weights = dict(model__method__kd_weight=0.0, model__method__fd_weight=2.0)
    heavy, light = build(pair_config(**weights)), build(pair_config(model__method__fd_weight=1.0))
    light.load_state_dict(heavy.state_dict())
    light.teacher.load_state_dict(heavy.teacher.state_dict())
    losses = []
    for model in (heavy, light):
        data = batch(model)
        torch.manual_seed(7)
        losses.append(model(**data, mode="loss"))
    assert "loss_kd" not in losses[0] and losses[1]["loss_kd"] > 0
    torch.testing.assert_close(losses[0]["loss_fd"], 2 * losses[1]["loss_fd"])


def mini(**changes):
    cfg = pair_config()
    for key, value in changes.items():
        cfg.merge_from_dict({key.replace("__", "."): value})
    return cfg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(model__method__type="PTA"),
            r"method 'PTA'.*FitNet, KD, MGD, OFA, PAT",
        ),
        (
            dict(
                model__method=dict(_delete_=True, type="OFA", branch="stages", input_size=(64, 64))
            ),
            r"branch='stages' of OFA scores whole images.*model.method.branch='embedding'",
        ),
        (
            dict(model__method__feedback="next"),
            r"feedback='next': PAT takes one of 'previous', 'current', 'none'",
        ),
        (dict(model__method__prompt="pixel"), r"channel.*spatial"),
        (dict(model__method__afp_stages=(0, 4)), r"stages 0 to 3"),
        (
            dict(model__student__neck__num_outs=5),
            r"student gives 5 feature levels .* teacher 4 .* both have \(4, 8, 16, 32\)",
        ),
        (
            dict(model__teacher__roi_head__bbox_head__num_classes=7),
            r"student has 11 classes .* teacher 8",
        ),
        (
            dict(model__teacher_stages=[dict(begin="backbone.stage.0", layout="NLC")]),
            r"no module 'backbone.stage.0'.*backbone.stages.0",
        ),
        (
            dict(model__teacher_stages=[dict(begin="backbone.stages.0", layout="LNC")]),
            r"unknown layout 'LNC'; known",
        ),
        (dict(model__teacher_checkpoint="nowhere.pth"), r"'nowhere.pth' does not exist"),
    ],
)
def test_wrong_settings_fail_at_build_time(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(mini(**options))


def test_mask_rcnn_box_rois():
    cfg = pair_config()
    student = cfg.model.student
    student.type = "MaskRCNN"
    student.roi_head.mask_roi_extractor = copy.deepcopy(student.roi_head.bbox_roi_extractor)
    student.roi_head.mask_head = dict(
        type="FCNMaskHead",
        num_convs=1,
        in_channels=64,
        conv_out_channels=16,
        num_classes=10,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
    )
    student.train_cfg.rcnn.mask_size = 14
    model = build(cfg)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    for _ in range(2):
        losses = train_step(model, batch(model, with_mask=True), optimizer)
    assert losses["loss_mask"] > 0 and losses["loss_kd"] > 0
    assert all(param.grad is not None for param in trainable(model).values())


def test_detector_without_a_neck():
    cfg = pair_config()
    for role in (cfg.model.student, cfg.model.teacher):
        role.pop("neck")
        role.backbone = dict(
            type="ResNet", depth=18, base_channels=16, stem_channels=16, num_stages=3,
            strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,),
        )  # fmt: skip
        role.rpn_head.anchor_generator.strides = [16]
        role.roi_head.bbox_roi_extractor.featmap_strides = [16]
    model = build(cfg)
    assert set(model.distill.prompts) == {"0", "1", "2"}
    assert model.distill.stage_features == (0, 0, 0)
    assert torch.isfinite(train_step(model, batch(model))["loss_fd"])


def test_other_roi_heads_are_refused():
    cfg = pair_config()
    cfg.model.student.roi_head.type = "PISARoIHead"
    cfg.model.student.train_cfg.rcnn.update(isr=dict(k=2, bias=0), carl=dict(k=1, bias=0.2))
    with pytest.raises(ValueError, match=r"student .* has the RoI head PISARoIHead"):
        build(cfg)


def test_unknown_backbone_asks_for_stages(monkeypatch):
    from pat_mmdet.models.task_modules import stages

    monkeypatch.delitem(stages._STAGES["OpenMMLab"], "SwinTransformer")
    with pytest.raises(ValueError, match=r"SwinTransformer are not known.*teacher_stages"):
        build(pair_config())


def test_stages_are_looked_up_for_prompts_only(monkeypatch):
    from pat_mmdet.models.task_modules import stages

    monkeypatch.delitem(stages._STAGES["OpenMMLab"], "SwinTransformer")
    cfg = pair_config()
    cfg.model.method = dict(type="KD", input_size=(64, 64))
    assert train_step(model := build(cfg), batch(model))["loss_kd"] > 0


def test_unused_stage():
    stages = [dict(begin=f"backbone.stages.{i}", layout="NLC") for i in range(4)]
    stages[1] = dict(begin="roi_head.bbox_head", layout="NCHW")
    with pytest.raises(ValueError, match=r"the module 'roi_head.bbox_head' of a stage is not run"):
        build(mini(model__teacher_stages=stages))


def test_input_size_is_asked_for():
    cfg = pair_config()
    cfg.model.method.pop("input_size", None)
    cfg.model.pop("input_size", None)
    with pytest.raises(ValueError, match="input_size is not set"):
        build(cfg)


def test_input_size_of_distiller_or_method():
    cfg = pair_config()
    cfg.model.method.pop("input_size", None)
    cfg.model.input_size = (64, 64)
    kernels = [embed.kernel_size for embed in build(cfg).distill.raa.embeds]
    cfg.model.method.input_size = cfg.model.pop("input_size")
    assert [embed.kernel_size for embed in build(cfg).distill.raa.embeds] == kernels
    cfg.model.input_size = (96, 64)
    expected = r"model.input_size=\(96, 64\) and model.method.input_size=\(64, 64\) differ"
    with pytest.raises(ValueError, match=expected):
        build(cfg)


@pytest.mark.parametrize("folder", ["", "configs/"])
def test_teacher_by_path(folder, tmp_path, monkeypatch):
    cfg = pair_config()
    whole = build(cfg)
    # Found among the shipped configs, from any folder.
    monkeypatch.chdir(tmp_path)
    cfg.model.teacher = f"{folder}teachers/faster-rcnn_swin-p_fpn_digits.py"
    by_path = build(cfg)
    assert_equal_states(whole.teacher.state_dict(), by_path.teacher.state_dict())
    assert_equal_states(whole.state_dict(), by_path.state_dict())


def test_teacher_by_path_of_own_config(tmp_path, monkeypatch):
    cfg = pair_config()
    teacher = copy.deepcopy(cfg.model.teacher)
    teacher.neck.out_channels = 32
    teacher.rpn_head.in_channels = teacher.roi_head.bbox_roi_extractor.out_channels = 32
    teacher.roi_head.bbox_head.in_channels = 32
    (tmp_path / "teachers").mkdir()
    # A file in the current folder goes before a shipped one of the same name.
    path = "teachers/faster-rcnn_swin-p_fpn_digits.py"
    Config(dict(model=teacher)).dump(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    cfg.model.teacher = path
    model = build(cfg)
    assert model.teacher.neck.fpn_convs[0].out_channels == 32


def test_missing_teacher_config():
    cfg = pair_config()
    cfg.model.teacher = "teachers/swin_x.py"
    with pytest.raises(FileNotFoundError, match=r"model.teacher='teachers/swin_x.py': there is no"):
        build(cfg)


def test_teacher_config_without_model():
    cfg = pair_config()
    cfg.model.teacher = "_base_/methods/kd.py"
    with pytest.raises(ValueError, match="has no model"):
        build(cfg)


def test_teacher_checkpoint_replaces_init_cfg(tmp_path):
    cfg = pair_config()
    torch.save(build(cfg, seed=1).teacher.state_dict(), tmp_path / "teacher.pth")
    cfg.model.teacher.backbone.init_cfg = dict(type="Pretrained", checkpoint="missing.pth")
    with pytest.raises(FileNotFoundError):
        build(cfg)
    cfg.model.teacher_checkpoint = str(tmp_path / "teacher.pth")
    weights = build(cfg).teacher.state_dict()
    assert_equal_states(weights, torch.load(tmp_path / "teacher.pth"))


def test_teacher_checkpoint_must_be_named():
    cfg = pair_config()
    cfg.model.pop("teacher_checkpoint")
    with pytest.raises(TypeError, match="teacher_checkpoint"):
        build(cfg)
