"""``python -m pat_mmdet`` is the ``pat-mmdet`` command."""

from pat_mmdet.cli.main import main

main()
