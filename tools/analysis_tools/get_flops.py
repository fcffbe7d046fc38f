"""Count the FLOPs and parameters of a training step, part by part, and what processes exchange.

Real passes on a random batch are counted: convolutions, linear layers and attention, a product
with its sum as two. Norms, activations, RoIAlign, losses and the optimizer are not in it.

Example:
    python tools/analysis_tools/get_flops.py configs/pat/swin_t-res18_coco.py --batch-size 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from step_arguments import add_arguments

from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

if TYPE_CHECKING:
    import torch
    from parts import Parts
    from torch import Tensor, nn
    from torch.utils.flop_counter import FlopCounterMode


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    return args


def count(run: Callable[[], object]) -> FlopCounterMode:
    """Count what a run takes, always with the same random numbers."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    # oneDNN's products and the fused attention of the CPU are unknown to the counter.
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # not in every build
    products = {} if product is None else {product: _product_flops}
    with (
        FlopCounterMode(display=False, custom_mapping=products) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        run()
    return counter


def _product_flops(x: torch.Size, *args: object, out_shape: torch.Size, **kwargs: object) -> int:
    """The FLOPs of a product of rows (N, in) with a matrix, which gives (N, out)."""
    return 2 * x.numel() * out_shape[-1]


def flops(run: Callable[[], object]) -> int:
    """The FLOPs of a run."""
    return count(run).get_total_flops()


def layers_forward(parts: Parts) -> dict[str, int]:
    """The FLOPs of the method's layers in a forward pass, by their name in the method."""
    model = parts.model
    counts = count(lambda: model(parts.inputs, parts.samples, mode="loss")).get_flop_counts()
    total = dict.fromkeys((name for name, _ in model.distill.named_children()), 0)
    start = f"{type(model).__name__}.distill."
    for name, operators in counts.items():
        parents = name.split(".")
        # A list of modules is not called itself, so its members are counted, but nothing twice.
        outermost = not any(".".join(parents[:i]) in counts for i in range(3, len(parents)))
        if name.startswith(start) and outermost:
            total[parents[2]] += sum(operators.values())
    return total


def parameters(module: nn.Module, trained: bool = False) -> int:
    """The number of parameters, of all or of those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def gathered_bytes(parts: Parts) -> int:
    """What a process sends to all others in a step, besides gradients."""
    from pat_mmdet.models.methods import crd

    sent = []

    def gather(data: Tensor) -> list[Tensor]:
        sent.append(data.nbytes)
        return [data]

    original, crd.all_gather = crd.all_gather, gather
    try:
        parts.step()
    finally:
        crd.all_gather = original
    return sum(sent)


def measure(args: argparse.Namespace) -> dict:
    """Count all parts of a step; the figures are those that are printed and written."""
    from parts import Parts, default_device

    from pat_mmdet.structures import Requires

    args.device = args.device or default_device()
    own, kd = Parts(args, args.method), Parts(args, "kd")
    model = own.model
    own.teacher()  # the first run also asks the student what to compare
    step, kd_step = flops(own.step), flops(kd.step)
    student = flops(lambda: model.student(own.inputs, own.samples, mode="loss"))
    teacher = flops(own.teacher)
    counted = dict(
        student_forward=student,
        student_backward=flops(own.student) - student,
        teacher_forward=teacher,
    )
    if Requires.PROMPTS in model.distill.requires:
        # With bare prompts, as the method's layers are counted apart.
        forward = flops(lambda: own.prompted_forward(bare=True)) - teacher
        counted["prompted_forward"] = forward
        counted["prompted_backward"] = flops(own.prompted(bare=True)) - forward
    layers = layers_forward(own)
    # Which layer a backward pass belongs to is not known to the counter.
    backward = step - sum(counted.values()) - sum(layers.values())
    modules = dict(
        student=model.student, teacher=model.teacher, **dict(model.distill.named_children())
    )
    trained = {name: parameters(module, trained=True) for name, module in modules.items()}
    return dict(
        flops=dict(
            **counted, layers_forward=layers, layers_backward=backward, step=step, kd_step=kd_step
        ),
        step_over_kd=step / kd_step,
        parameters={name: parameters(module) for name, module in modules.items()},
        trained_parameters=trained,
        exchanged_bytes=dict(
            gradients={name: 4 * number for name, number in trained.items()},
            gathered=gathered_bytes(own),
        ),
        settings={name: value for name, value in vars(args).items() if name != "json"},
    )


def show(figures: dict) -> None:
    """Print the figures as tables."""
    settings, counted = figures["settings"], figures["flops"]
    print(f"{settings['config']}, {settings['method']}, a batch of {settings['batch_size']}\n")
    print(f"{'':<30} {'GFLOPs':>10}")
    parts = {
        "student, forward": counted["student_forward"],
        "student, backward": counted["student_backward"],
        "plain teacher, forward": counted["teacher_forward"],
    }
    if "prompted_forward" in counted:
        parts["prompted teacher, forward"] = counted["prompted_forward"]
        parts["  its activations, backward"] = counted["prompted_backward"]
    parts |= {f"{name}, forward": value for name, value in counted["layers_forward"].items()}
    parts["the method's layers, backward"] = counted["layers_backward"]
    parts[f"a step of {settings['method']}"] = counted["step"]
    parts["a step of kd"] = counted["kd_step"]
    for name, value in parts.items():
        print(f"{name:<30} {value / 1e9:10.2f}")
    print(f"{settings['method']} / kd: {figures['step_over_kd']:.3f}\n")
    print(f"{'':<16} {'parameters':>12} {'trained':>12} {'gradient MB':>12}")
    for name, number in figures["parameters"].items():
        gradients = figures["exchanged_bytes"]["gradients"][name]
        trained = figures["trained_parameters"][name]
        print(f"{name:<16} {number:12,} {trained:12,} {gradients / 1e6:12.2f}")
    exchanged = figures["exchanged_bytes"]
    megabytes = sum(exchanged["gradients"].values()) / 1e6
    print(f"\nEach process exchanges {megabytes:.2f} MB of gradients a step, and no buffers.")
    if exchanged["gathered"]:
        print(f"It sends {exchanged['gathered'] / 1e6:.2f} MB of rows to all others.")


def main() -> None:
    """Count as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        figures = measure(args)
        show(figures)
        if args.json:
            write_atomic(Path(args.json), json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
