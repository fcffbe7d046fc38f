import pytest
from helpers.tools import run_tool

import pat_mmdet  # noqa: F401  before mmdet, which without it needs an mmcv with compiled operators


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A small set of generated digits: 24 images to train on and 8 to test on, 64 pixels wide."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    run_tool(
        "dataset_converters/make_digits.py", folder,
        "--train", 24, "--val", 8, "--size", 64, "--max-digit", 32,
    )  # fmt: skip
    return folder
