"""Packaging of pat_mmdet.

``pip install -e .`` is safe where MMDetection is installed: as in MMDetection itself, torch and the
OpenMMLab packages are extras, so that pip neither replaces them nor puts mmcv-lite over an mmcv
with compiled operators. A version that does not work is named when the package is imported
(``pat_mmdet/utils/version_check.py``, whose ranges these are).

A wheel has the configs and tools in ``pat_mmdet/.mim``, where OpenMMLab's packages have theirs.
"""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

about: dict = {}
exec((ROOT / "pat_mmdet" / "version.py").read_text(encoding="utf-8"), about)
readme = ROOT / "README.md"

MM = [
    "torch>=2.0",
    "torchvision",  # does what mmcv-lite lacks
    "mmengine>=0.10.0,<1.0.0",
    "mmcv-lite>=2.0.0,<2.2.0",
    "mmdet>=3.1.0,<4.0.0",
    "pycocotools",
]
CLASSIFICATION = ["mmpretrain>=1.0.0,<2.0.0", "timm>=0.9"]
DEMO = ["scikit-learn", "matplotlib"]
FASTER_EVAL = ["faster-coco-eval>=1.6.5"]
DEPLOY = ["onnx>=1.20,<2", "onnxscript>=0.7,<1", "onnxruntime>=1.23,<2"]
YOLO = ["globox>=2.9"]
DOCS = ["sphinx>=8,<10", "myst-parser>=4,<6", "furo>=2025.7", "sphinx-copybutton>=0.5.2"]
TEST = ["coverage", "mypy", "pytest", "pytest-xdist", "ruff", "sybil>=9"]


def links_and_caches(folder: str, names: list[str]) -> list[str]:
    """Return what is not copied: the old names of tools are links to them."""
    return [x for x in names if x == "__pycache__" or os.path.islink(os.path.join(folder, x))]


class BuildWithConfigs(build_py):
    """Copy configs, tools and the model index into what is built."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "pat_mmdet", ".mim")
        shutil.rmtree(target, ignore_errors=True)
        for name in ("configs", "tools"):
            shutil.copytree(ROOT / name, target / name, ignore=links_and_caches)
        shutil.copy(ROOT / "model-index.yml", target)


setup(
    name="pat_mmdet",
    version=about["__version__"],
    description="Perspective-Aware Teaching: distillation between architectures, for MMDetection",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["pat_mmdet", "pat_mmdet.*"]),
    package_data={"pat_mmdet": ["py.typed", "visualization/*.html"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["pat-mmdet = pat_mmdet.cli.main:main"]},
    python_requires=">=3.9",
    install_requires=["numpy", "packaging"],
    extras_require={
        "mm": MM,
        "classification": CLASSIFICATION,
        "demo": [*DEMO, *DEPLOY],
        "faster-eval": FASTER_EVAL,
        "deploy": DEPLOY,
        "docs": DOCS,
        "yolo": YOLO,
        "test": [*DEMO, *FASTER_EVAL, *DEPLOY, *YOLO, *TEST],
        "all": [*MM, *CLASSIFICATION, *DEMO, *DEPLOY, *YOLO],
    },
)
