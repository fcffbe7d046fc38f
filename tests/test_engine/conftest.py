import pytest
from helpers.toy import runner
from mmengine.registry import init_default_scope


@pytest.fixture
def restore_scope():
    """Runners leave a default scope behind that has no detectors."""
    yield
    init_default_scope("mmdet")


@pytest.fixture
def toy(tmp_path, restore_scope):
    """Unbroken training of the toy model: six steps, a checkpoint at each second one."""
    made = runner(tmp_path)
    made.train()
    return made
