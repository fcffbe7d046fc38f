"""The contract between a distiller and a method, that of a user's own package included."""

import os

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step
from helpers.tools import ROOT, run_tool
from torch import nn

from pat_mmdet.models.methods import KD, OFA, PAT, BaseMethod, FitNet
from pat_mmdet.registry import METHODS, build_method
from pat_mmdet.structures import Requires

OWN_METHOD = '''
import torch
import torch.nn.functional as F
from torch import nn

from pat_mmdet.models.methods import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import Requires


@METHODS.register_module()
class Hint(BaseMethod):
    """Compare the last features, and the last features of half of the batch with prompts."""

    requires = Requires.FEATURES | Requires.PROMPTS
    first_prompted_stage = 2

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def build_layers(self, student, teacher):
        self.project = nn.Conv2d(student.features[-1][0], teacher.features[-1][0], 1)
        self.shift = nn.Parameter(torch.zeros(teacher.stage_inputs[2][0]))

    def forward(self, student, teacher, frozen_teacher):
        def prompt(stage, x):
            return x + self.shift[:, None, None] if stage == 2 else x

        prompted = frozen_teacher.forward_prompted(prompt, num_images=1)
        projected = self.project(student.features[-1])
        loss = F.mse_loss(projected, teacher.features[-1])
        return {
            "loss_hint": self.weight * loss,
            "loss_prompted": F.mse_loss(projected[:1], prompted.features[-1]),
        }
'''


@pytest.fixture
def registered():
    """Registers a method for one test."""
    names = []

    def register(**members):
        name = f"Own{len(names)}"
        method = type(name, (BaseMethod,), members)
        METHODS.register_module(name=name, module=method)
        names.append(name)
        cfg = pair_config()
        cfg.model.method = dict(type=name, input_size=(64, 64))
        return cfg

    yield register
    for name in names:
        METHODS.module_dict.pop(name)


def logit_gap(key):
    def forward(self, student, teacher, frozen_teacher):
        return {key: (student.logits - teacher.logits).square().mean()}

    return forward


@pytest.mark.parametrize(
    ("method", "requires"),
    [
        (KD(), Requires.LOGITS),
        (FitNet(), Requires.FEATURES | Requires.LOGITS),
        (FitNet(kd_weight=0.0), Requires.FEATURES),
        (OFA(), Requires.LOGITS | Requires.EMBEDDING),
        (OFA(branch="stages"), Requires.LOGITS | Requires.STUDENT_FEATURES),
        (PAT(), Requires.FEATURES | Requires.PROMPTS | Requires.LOGITS),
        (PAT(kd_weight=0), Requires.FEATURES | Requires.PROMPTS | Requires.TEACHER_LOGITS),
        (PAT(kd_weight=0, reg_weight=0), Requires.FEATURES | Requires.PROMPTS),
    ],
)
def test_requires_depends_on_hyper_parameters(method, requires):
    assert method.requires == requires


def test_methods_are_built_without_networks():
    for name in METHODS.module_dict:
        method = build_method(dict(type=name))
        assert list(method.parameters()) == [], name


@pytest.mark.parametrize("requires", [{"feature"}, "features", None, 3])
def test_requires_must_be_a_flag(registered, requires):
    cfg = registered(requires=requires, forward=logit_gap("loss_gap"))
    message = r"Own0.requires is .*; combine members of .*Requires: .*STUDENT_FEATURES"
    with pytest.raises(TypeError, match=message):
        build(cfg)


def test_misspelt_requirement():
    with pytest.raises(AttributeError, match="FEATURE"):
        _ = Requires.FEATURE


def test_requires_must_be_given(registered):
    cfg = registered(forward=logit_gap("loss_gap"))
    with pytest.raises(TypeError, match=r"abstract.* requires"):
        build(cfg)


def test_returned_key_without_loss(registered):
    model = build(registered(requires=Requires.LOGITS, forward=logit_gap("gap")))
    with pytest.raises(ValueError, match=r"Own0 returns 'gap', .* rename it to 'loss_gap'"):
        model(**batch(model), mode="loss")


def test_returned_key_of_the_student(registered):
    model = build(registered(requires=Requires.LOGITS, forward=logit_gap("loss_cls")))
    with pytest.raises(ValueError, match=r"Own0 returns 'loss_cls', .* a loss of FasterRCNN"):
        model(**batch(model), mode="loss")


def test_only_what_is_required_is_computed(registered):
    def forward(self, student, teacher, frozen_teacher):
        read = [(x.logits, x.embedding, x.labels, x.indices) for x in (student, teacher)]
        assert read == [(None,) * 4] * 2
        return {"loss_gap": (student.features[0] - teacher.features[0]).square().mean()}

    model = build(registered(requires=Requires.FEATURES, forward=forward))
    assert model.frozen_teacher.score_reader is None
    assert model.frozen_teacher.prefix_cache is None
    model(**batch(model), mode="loss")


def test_prompts_must_be_required(registered):
    def forward(self, student, teacher, frozen_teacher):
        frozen_teacher.forward_prompted(lambda stage, x: x)

    model = build(registered(requires=Requires.FEATURES, forward=forward))
    with pytest.raises(RuntimeError, match=r"has Requires.PROMPTS"):
        model(**batch(model), mode="loss")


def test_method_without_layers_trains(registered):
    model = build(registered(requires=Requires.LOGITS, forward=logit_gap("loss_gap")))
    assert train_step(model, batch(model))["loss_gap"] > 0
    assert not any(key.startswith("distill.") for key in model.state_dict())


def test_method_initialization_is_isolated(registered):
    def init(self):
        BaseMethod.__init__(self)
        self.layer = nn.Linear(3, 3)

    plain = build(pair_config())
    drawn = build(
        registered(__init__=init, requires=Requires.LOGITS, forward=logit_gap("loss_gap"))
    )
    other = drawn.student.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in plain.student.state_dict().items())


def test_method_of_own_package_trains(tmp_path, digits):
    """One class and an overlay beside the user's config, two steps by the tool."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text(OWN_METHOD)
    (tmp_path / "_base_/methods").mkdir(parents=True)
    (tmp_path / "_base_/methods/hint.py").write_text('method = dict(type="Hint", weight=2.0)\n')
    (tmp_path / "pair.py").write_text(
        f"_base_ = {str(ROOT / 'configs/pat/swin_p-res18_digits.py')!r}\n"
        "custom_imports = dict(imports=['mine'])\n"
    )
    output = run_tool(
        "train.py", "pair.py", "--method", "hint", "--work-dir", "out", "--cfg-options",
        f"data_root={digits}/", "train_cfg.max_iters=2", "train_cfg.val_interval=10",
        "train_dataloader.batch_size=2", "default_hooks.logger.interval=1",
        "model.teacher_checkpoint=None",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert output.count("loss_hint: ") == output.count("loss_prompted: ") == 2
    state = torch.load(tmp_path / "out/iter_2.pth", weights_only=True)["state_dict"]
    own = {key for key in state if key.startswith("distill.")}
    assert own == {"distill.project.weight", "distill.project.bias", "distill.shift"}


def test_arguments_of_a_task():
    """As in configs of earlier versions, arguments for one task may stand under its name."""
    cfg = pair_config()
    cfg.model.method = dict(
        type="KD", input_size=(64, 64), kd_weight=2.0,
        detection=dict(temperature=4.0, kd_weight=1.0), classification=dict(temperature=2.0),
    )  # fmt: skip
    method = build(cfg).distill
    assert (method.temperature, method.kd_weight) == (4.0, 2.0)
