"""Packaging of pat_mmdet.

``pip install -e .`` is safe where MMDetection is installed: as in MMDetection itself, torch and the
OpenMMLab packages are extras, so that pip neither replaces them nor puts mmcv-lite over an mmcv
with compiled operators. A version that does not work is named when the package is imported
(``pat_mmdet/utils/version_check.py``, whose ranges these are).
"""

from pathlib import Path

from setuptools import find_packages, setup

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
TEST = ["import-linter", "mypy", "pytest", "pytest-cov", "pytest-xdist", "ruff"]

setup(
    name="pat_mmdet",
    version=about["__version__"],
    description="Perspective-Aware Teaching: distillation between architectures, for MMDetection",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["pat_mmdet", "pat_mmdet.*"]),
    python_requires=">=3.9",
    install_requires=["numpy", "packaging"],
    extras_require={
        "mm": MM,
        "classification": CLASSIFICATION,
        "demo": DEMO,
        "faster-eval": FASTER_EVAL,
        "test": [*DEMO, *FASTER_EVAL, *TEST],
        "all": [*MM, *CLASSIFICATION, *DEMO],
    },
)
