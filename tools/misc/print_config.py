"""Print a config as training sees it; see ``--help``."""

from pat_mmdet.cli.print_config import main

if __name__ == "__main__":
    main()
