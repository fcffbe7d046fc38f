"""Export a trained student; see ``--help``."""

from pat_mmdet.cli.export import main

if __name__ == "__main__":
    main()
