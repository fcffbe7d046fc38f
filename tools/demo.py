"""Train and compare on generated data; see ``--help``."""

from pat_mmdet.cli.demo import main

if __name__ == "__main__":
    main()
