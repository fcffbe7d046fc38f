"""Draw images of a data set with their boxes; see ``--help``."""

from pat_mmdet.cli.browse_dataset import main

if __name__ == "__main__":
    main()
