"""PAT on a toy teacher of two stages."""

import torch
from helpers.methods import build_layers, normal

from pat_mmdet.models.methods import PAT
from pat_mmdet.structures import FeatureSpec, NetworkOutputs

BATCH, CLASSES = 4, 5
STUDENT = FeatureSpec(((16, 8, 8), (32, 4, 4)), num_classes=CLASSES)
TEACHER = FeatureSpec(
    ((24, 8, 8), (48, 4, 4)),
    num_classes=CLASSES,
    stage_inputs=((8, 8, 8), (24, 4, 4)),
    stage_features=(0, 1),
)


class ToyTeacher:
    """Two stages of fixed 1×1 convolutions with ReLU, the second on a smaller map."""

    def __init__(self, batch=BATCH, seed=0):
        self.images = normal(batch, 8, 8, 8, seed=20 + seed)
        self.weights = [normal(24, 8, seed=11), normal(48, 24, seed=12) / 3]
        self.head = normal(CLASSES, 48, seed=13) / 5

    def forward_prompted(self, prompt, num_images=None):
        x, features = self.images[:num_images], []
        for stage, weight in enumerate(self.weights):
            if stage:
                x = torch.nn.functional.avg_pool2d(x, 2)
            x = torch.einsum("oc,bchw->bohw", weight, prompt(stage, x)).relu()
            features.append(x)
        return NetworkOutputs(features, logits=x.mean((2, 3)) @ self.head.T)

    def plain(self):
        return self.forward_prompted(lambda stage, x: x)


def make_pat(beta=0.3, **options):
    """PAT with parameters that are the same on every machine."""
    method = build_layers(PAT(**{"raa_grid": 2, "raa_dim": 16, **options}), STUDENT, TEACHER)
    with torch.no_grad():
        for name, param in method.named_parameters():
            fan_in = param[0].numel() if param.ndim > 1 else 4
            scale = (1.5 if name.startswith("prompts") else 1) / fan_in**0.5
            param.copy_(scale * torch.arange(1, 1 + param.numel()).square().sin().view_as(param))
            if name.endswith("beta"):
                param.fill_(beta)
    return method


def student_outputs(batch=BATCH, seed=0):
    *features, logits = [
        normal(batch, *shape, seed=30 + 10 * seed + i).requires_grad_()
        for i, shape in enumerate((*STUDENT.features, (CLASSES,)))
    ]
    return NetworkOutputs(features, logits=logits)


def pat_step(method, batch=BATCH, seed=0):
    """Losses of a step, and the outputs of the student, which have gradients."""
    student, teacher = student_outputs(batch, seed), ToyTeacher(batch, seed)
    losses = method(student, teacher.plain(), teacher)
    method.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    return losses, student
