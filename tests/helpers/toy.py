"""A toy model with a method, and a runner that trains it."""

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.carried = {}

    def resume_state(self):
        return dict(self.carried)

    def load_resume_state(self, state):
        self.carried = state


class Toy(BaseModel):
    """Learns with dropout, and carries the last input on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.distill = Method()

    def forward(self, inputs, mode="tensor"):
        inputs = torch.stack(inputs)
        if mode == "loss":
            self.distill.carried = {"last": inputs[0].detach() + self.distill.weight.detach()}
            loss = nn.functional.dropout(self.linear(inputs), 0.5).square().mean()
            return {"loss": loss + self.distill.weight.square().sum()}
        return [self.linear(inputs)]


class Noise(Dataset):
    """Samples made of random numbers."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return dict(inputs=torch.tensor([index, np.random.rand(), float(torch.rand(()))]))

    def __len__(self):
        return 5


class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {"score": np.float64(0.25)}


def runner(
    folder,
    max_iters=6,
    name="toy",
    hook="SafeCheckpointHook",
    ema=True,
    epochs=None,
    seed=7,
    accumulate=1,
    workers=0,
    checkpoint=None,
    hooks=(),
    **options,
):
    train_cfg = dict(type="ResumableIterBasedTrainLoop", max_iters=max_iters, val_interval=2)
    if epochs is not None:
        train_cfg = dict(type="ResumableEpochBasedTrainLoop", max_epochs=epochs)
    average = [dict(type="EMAHook", momentum=0.1, update_buffers=True)] if ema else []
    loader = dict(
        dataset=Noise(),
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type="DefaultSampler", shuffle=True),
    )
    torch.manual_seed(0)
    return Runner(
        Toy(),
        str(folder),
        train_dataloader=loader,
        val_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)),
        train_cfg=train_cfg,
        val_cfg=dict(type="ValLoop"),
        val_evaluator=Evaluator(Score()),
        optim_wrapper=dict(
            optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.01),
            paramwise_cfg=dict(bias_decay_mult=0.0),
            accumulative_counts=accumulate,
        ),
        param_scheduler=[dict(type="MultiStepLR", milestones=[3, 5], by_epoch=False)],
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1),
            checkpoint={
                "type": hook,
                "by_epoch": epochs is not None,
                "interval": 2 if epochs is None else 1,
                "save_best": "score",
                "rule": "greater",
                **(checkpoint or {}),
            },
        ),
        custom_hooks=[*average, *hooks],
        log_processor=dict(by_epoch=epochs is not None),
        default_scope="mmengine",
        randomness=dict(seed=seed),
        # What runners of one name started in the same second log would be mixed.
        experiment_name=f"{name}_{folder.parent.name}_{folder.name}",
        **options,
    )


def history(made, name):
    return made.message_hub.get_scalar(name)
