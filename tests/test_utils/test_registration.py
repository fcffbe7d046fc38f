import subprocess
import sys
import textwrap

import pytest
from helpers.tools import ROOT
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    TRANSFORMS,
    DefaultScope,
)

import pat_mmdet  # noqa: F401

EVERYWHERE = [
    (MODELS, "DetectionDistiller"),
    (MODELS, "ClassificationDistiller"),
    (HOOKS, "SafeCheckpointHook"),
    (LOOPS, "ResumableIterBasedTrainLoop"),
    (METRICS, "FasterCocoMetric"),
    (TRANSFORMS, "LoadImageOrSkip"),
]
SCOPED = [
    ("mmdet", MODELS, "HeadlessMobileNetV2"),
    ("mmdet", DATASETS, "CheckedCocoDataset"),
    ("mmpretrain", MODELS, "PretrainedTimmClassifier"),
    ("mmpretrain", DATASETS, "TolerantCustomDataset"),
    ("mmpretrain", DATASETS, "TolerantImageNet"),
]


def run(code, *args):
    """Runs code in a Python of its own, which has imported nothing yet; gives its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_import_is_light():
    assert not run("""
        import sys, pat_mmdet
        libraries = {"torch", "numpy", "mmengine", "mmcv", "mmdet", "mmpretrain", "timm"}
        print(*libraries & set(sys.modules))
    """)


@pytest.mark.parametrize(
    "scope, registry, name",
    [(scope, *item) for scope in ("mmengine", "mmdet", "mmpretrain") for item in EVERYWHERE]
    + SCOPED,
)
def test_names_are_found_by_scope(scope, registry, name):
    with (
        DefaultScope.overwrite_default_scope(scope),
        registry.switch_scope_and_registry(None) as found,
    ):
        assert found.scope == scope
        assert found.get(name).__name__ == name


def test_package_before_a_library():
    output = run("""
        import sys, pat_mmdet, mmengine.registry
        print(sum(name.startswith("pat_mmdet.models") for name in sys.modules))
        print(mmengine.registry.MODELS.get("DetectionDistiller").__name__)
        print("timm" in sys.modules, "pat_mmdet.models.classifiers" in sys.modules)
    """)
    assert output == ["0", "DetectionDistiller", "False", "False"]


def test_package_after_a_first_look_up():
    output = run("""
        import sys, mmdet.registry, mmengine.hooks
        from mmengine.registry import HOOKS
        print(HOOKS.get("EMAHook").__name__)
        import pat_mmdet
        print(sum(name.startswith("pat_mmdet.models") for name in sys.modules))
        print(mmdet.registry.MODELS.get("DetectionDistiller").__name__)
        print(HOOKS.get("StudentEMAHook").__name__)
        print("timm" in sys.modules, "pat_mmdet.models.classifiers" in sys.modules)
    """)
    assert output == ["EMAHook", "0", "DetectionDistiller", "StudentEMAHook", "False", "False"]


def test_timm_networks_are_registered():
    pytest.importorskip("timm")
    output = run("""
        import sys, pat_mmdet, mmdet.registry
        print(mmdet.registry.MODELS.get("DetectionDistiller").__name__, "timm" in sys.modules)
        from mmpretrain.registry import MODELS
        model = MODELS.build(dict(type="TimmClassifier", model_name="swin_pico_patch4_window7_224"))
        print(type(model).__name__)
    """)
    assert output == ["DetectionDistiller", "False", "TimmClassifier"]


def test_other_registries_are_unchanged():
    output = run("""
        import pat_mmdet
        from mmengine.registry import FUNCTIONS, Registry
        assert Registry("other", scope="other")._locations == FUNCTIONS._locations == []
    """)
    assert output == []


def test_runner_of_mmengine(digits, tmp_path):
    """A program that knows mmengine alone runs a config, of which nothing else imports us."""
    output = run(
        """
        import sys
        from mmengine.config import Config
        from mmengine.runner import Runner
        cfg = Config.fromfile("configs/students/faster-rcnn_r18_fpn_digits.py")
        cfg.train_dataloader.dataset.data_root = sys.argv[1]
        cfg.work_dir = sys.argv[2]
        cfg.dump(sys.argv[2] + "/dumped.py")
        runner = Runner.from_cfg(Config.fromfile(sys.argv[2] + "/dumped.py"))
        print(type(runner.train_loop).__name__, *(type(hook).__name__ for hook in runner.hooks))
        """,
        digits,
        tmp_path,
    )
    assert {"ResumableIterBasedTrainLoop", "SafeCheckpointHook"} <= set(output)


def test_register_all_modules():
    """Every module that registers something is imported; methods have a registry of their own."""
    output = run("""
        import sys
        from pathlib import Path
        import pat_mmdet
        pat_mmdet.register_all_modules()
        package = Path(pat_mmdet.__file__).parent
        for file in package.rglob("*.py"):
            if ".register_module(" in file.read_text(encoding="utf-8"):
                name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
                print(f"{name}:{name in sys.modules}")
    """)
    assert "pat_mmdet.models.distillers.detection:True" in output
    assert [line for line in output if not line.endswith(":True")] == []


def test_register_all_modules_without_libraries():
    output = run("""
        import sys
        sys.modules["mmdet"] = None
        import pat_mmdet
        try:
            pat_mmdet.register_all_modules()
        except ImportError as error:
            print(error)
    """)
    assert "mmdet" in " ".join(output)
