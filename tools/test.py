"""Evaluate a student or a teacher; see ``--help``."""

from pat_mmdet.cli.test import main

if __name__ == "__main__":
    main()
