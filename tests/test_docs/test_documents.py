"""The checks of the documentation find faults."""

import ast
import shlex

import pytest
from helpers.documents import check_command, check_names


@pytest.mark.parametrize(
    "command, message",
    [
        ("pat-mmdet trian CONFIG", "no command 'trian'"),
        ("python tools/trian.py CONFIG", "tools/trian.py does not exist"),
        ("python tools/train.py CONFIG --metod kd", "unrecognized arguments: --metod kd"),
        ("python tools/train.py configs/pat/swin_t.py", "'configs/pat/swin_t.py' does not exist"),
        ("bash tools/dist_train.sh CONFIG 8 --metod kd", "unrecognized arguments: --metod kd"),
        ("pat-mmdet train pat/swin_t-res18_coco.py --method kdd", "kdd"),
        ("make dmo", "make dmo: no such target"),
        ("pip install .[everything]", "no extra 'everything'"),
        ("pytest tests/test_none.py", "do not exist"),
        ("kubectl get pods", "unknown command 'kubectl'"),
    ],
)
def test_wrong_commands(command, message):
    with pytest.raises((AssertionError, FileNotFoundError, ValueError), match=message):
        check_command(shlex.split(command))


@pytest.mark.parametrize(
    "program",
    [
        "from pat_mmdet import api",
        "from pat_mmdet import apis\napis.destill('config.py')",
        "from pat_mmdet import apis\napis.distill('config.py', metod='kd')",
        "from pat_mmdet.deploy import OnnxDetector\nOnnxDetector('a.onnx', threads=2)",
    ],
)
def test_wrong_programs(program):
    with pytest.raises((ImportError, AttributeError, TypeError)):
        check_names(ast.parse(program))
