"""Print a config as training sees it: bases, ``--method`` and ``--cfg-options`` merged.

Example:
    python tools/misc/print_config.py configs/pat/swin_t-res18_coco.py --method kd
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pat_mmdet.cli.arguments import add_cfg_options, add_method
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors

SAVE_SUFFIXES = (".py", ".json", ".yml", ".yaml")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Print the whole config")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--save-path", type=Path, help=f"also write it to this file ({', '.join(SAVE_SUFFIXES)})"
    )
    add_method(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.save_path is not None and args.save_path.suffix not in SAVE_SUFFIXES:
        parser.error(f"--save-path must end in one of {', '.join(SAVE_SUFFIXES)}")
    return args


def main() -> None:
    """Print the merged config and save it where asked to."""
    args = parse_args()
    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options, args.method, args.settings)
        print(f"Config:\n{cfg.pretty_text}")
        if args.save_path is not None:
            args.save_path.parent.mkdir(parents=True, exist_ok=True)
            cfg.dump(args.save_path)
            print(f"saved to {args.save_path}")


if __name__ == "__main__":
    main()
