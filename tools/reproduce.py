"""Run cells of the tables; see ``--help``."""

from pat_mmdet.cli.reproduce import main

if __name__ == "__main__":
    main()
