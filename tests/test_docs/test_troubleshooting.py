"""The messages that docs/troubleshooting.md explains are those of the source."""

import ast
import re

from helpers.tools import ROOT

# Beginnings of the messages of other libraries.
OTHERS = (
    "No module named",
    "libGL.so.1",
    "module 'numpy'",
    "DetectionDistiller is not in",
    "Duplicate key",
    "CUDA out of memory",
    "Expected to have finished reduction",
)


def text_of(node):
    """The text of a string with … for its values; empty for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "…" for part in node.values)
    return ""


def test_messages_are_in_the_source():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    own = [heading for heading in headings if not heading.startswith(OTHERS)]
    assert len(own) > 20
    files = (ROOT / "pat_mmdet").rglob("*.py")
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    source = "\n".join(text_of(node) for tree in trees for node in ast.walk(tree))
    # A value may have quotes that its representation gives it.
    patterns = {x: ".*".join(map(re.escape, re.split("'?…'?", x))) for x in own}
    assert not [x for x, pattern in patterns.items() if not re.search(pattern, source)]
