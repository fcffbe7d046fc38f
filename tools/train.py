"""Train a detector or classifier; see ``--help``."""

from pat_mmdet.cli.train import main

if __name__ == "__main__":
    main()
