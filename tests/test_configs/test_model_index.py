"""The model index, which mim reads."""

import pytest
from helpers.tools import ROOT
from modelindex.load_model_index import load

from pat_mmdet.utils.tables import load_tables

METRICS = {
    "Object Detection": ("box AP", "AP50", "AP75"),
    "Image Classification": ("Top 1 Accuracy",),
}


@pytest.fixture(scope="module")
def index():
    return load(str(ROOT / "model-index.yml"))


@pytest.fixture(scope="module")
def models(index):
    return index.models


def test_every_method_has_a_metafile(models):
    overlays = {path.stem for path in (ROOT / "configs/_base_/methods").glob("*.py")}
    forms = {name for name in overlays if name.startswith("pat_")}  # of PAT, which has one
    assert {model.metadata.data["Method"] for model in models} == overlays - {"none", *forms}


def test_files_exist_and_names_are_unique(index, models):
    assert len({model.name for model in models}) == len(models)
    assert all((ROOT / model.config).is_file() for model in models)
    assert all((ROOT / collection.code["URL"]).is_file() for collection in index.collections)
    assert {model.in_collection for model in models} == {each.name for each in index.collections}


def test_published_results(models):
    published = [model for model in models if "published" in model.metadata.data["Source"]]
    found = set()
    for model in published:
        pair, name, method, _ = model.name.rsplit("_", 3)
        cell = load_tables()[name].cells[f"{pair}/{method}"]
        (result,) = model.results
        assert tuple(result.metrics[key] for key in METRICS[result.task]) == cell.published
        found.add((name, cell.name))
    assert found == {
        (name, cell.name)
        for name, table in load_tables().items()
        for cell in table.cells.values()
        if cell.method == "pat" and cell.published
    }
