"""Where the project's configs and tools lie."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout they lie beside the package; a wheel has them inside, in OpenMMLab's `.mim` folder.
ROOT = PACKAGE / ".mim" if (PACKAGE / ".mim").is_dir() else PACKAGE.parent
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"
