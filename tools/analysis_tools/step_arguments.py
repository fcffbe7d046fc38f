"""Arguments of the tools that analyse a training step."""

import argparse

from pat_mmdet.cli.arguments import add_cfg_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the networks and the batch."""
    parser.add_argument("config", help="path of the config of a pair")
    parser.add_argument("--method", default="pat", help="method to measure beside KD")
    parser.add_argument("--batch-size", type=int, default=4, help="images of a step")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar=("HEIGHT", "WIDTH"),
        help="of the images; the config's input_size by default",
    )
    parser.add_argument("--device", help="'cuda' where there is a GPU, else 'cpu', by default")
    add_cfg_options(parser)
