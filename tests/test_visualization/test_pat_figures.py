"""Figures of a distiller, and the hook that draws them."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import classifiers
from mmengine.config import ConfigDict
from PIL import Image

from pat_mmdet.engine.hooks import PATVisualizationHook
from pat_mmdet.visualization.feature_figures import draw_cka, draw_prompts, encode_png
from pat_mmdet.visualization.pat_figures import DistillerFigures, compute_pat


@pytest.fixture(scope="module")
def dataset():
    data = classifiers.raw_batch(8)
    return [dict(inputs=x, data_samples=y) for x, y in zip(*data.values())]


def pat(beta=0.5, method="PAT", **options):
    model = classifiers.build(classifiers.distiller(method=method, **options))
    with torch.no_grad():
        for name, param in model.distill.named_parameters():
            if name.endswith("beta"):
                param.fill_(beta)
    return model


@pytest.fixture(scope="module")
def model():
    return pat()


def test_figures_leave_the_distiller_as_it_was(model, dataset):
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    drawing = DistillerFigures(model, dataset, batch_size=4, image=3)
    figures = drawing.draw()
    assert list(figures) == ["attention", "prompts"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model.distill.training and not model.distill.resume_state()
    assert all(param.grad is None for param in model.parameters())
    # The shares of the four levels that a query attends to.
    titles = [axis.get_title() for axis in figures["attention"].axes]
    assert titles[0] == "region (1, 1)"
    for row in range(4):
        shares = [int(title.rpartition(" ")[2][:-1]) for title in titles[5 * row + 1 : 5 * row + 5]]
        assert sum(shares) == pytest.approx(100, abs=2)


def test_prompted_outputs():
    model = pat(beta=0.0)
    data = classifiers.batch(model)
    outputs = compute_pat(model, **data)
    assert outputs.attention.shape == (4, 4, 2, 2, 4, 2, 2)
    assert all(map(torch.equal, outputs.plain.features, outputs.prompted.features))
    with torch.no_grad():
        for prompt in model.distill.prompts.values():
            prompt.beta.fill_(0.5)
    changed = compute_pat(model, **data)
    again = compute_pat(model, **data)
    for plain, one, other in zip(outputs.plain.features, changed.prompted.features,
                                 again.prompted.features):  # fmt: skip
        assert not torch.equal(plain, one) and torch.equal(one, other)


def test_energy_in_the_titles():
    plain = [torch.ones(2, 3, 4, 4)]
    figure = draw_prompts(plain, [plain[0] / 2], np.zeros((8, 8, 3), np.uint8), ["level 1"])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1:4] == ["plain", "prompted, energy 25%", "prompted − plain"]
    change = figure.axes[3].images[0].get_array()
    assert np.allclose(change, -(3**0.5) / 2)


def test_cells_of_cka():
    figure = draw_cka({"a": torch.tensor([[0.25, 1.0]]), "b": torch.tensor([[0.5, 0.0]])})
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes[:2]]
    assert texts == [["0.25", "1.00"], ["0.50", "0.00"]]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["a: mean 0.62", "b: mean 0.25"]
    with Image.open(io.BytesIO(encode_png(figure))) as image:
        assert image.format == "PNG" and image.size == (760, 130)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image=8), "image=8: the dataset has the images 0 to 7"),
        (dict(region=(0, 2)), r"region=\(0, 2\): give row and column, 0 to 1 \(raa_grid=2\)"),
        (dict(num_images=2), "3 images are too few for CKA, which needs at least 4"),
    ],
)
def test_wrong_options(options, message, model, dataset):
    with pytest.raises(ValueError, match=message):
        DistillerFigures(model, dataset, **{"image": 1, **options})


class Drawn(list):
    """A visualizer that keeps what it is given."""

    def add_image(self, name, image, step):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        self.append((name, step))


def runner(model, dataset, **options):
    return SimpleNamespace(
        model=model, iter=0, cfg=ConfigDict(model={}), visualizer=Drawn(), val_loop=object(),
        val_dataloader=SimpleNamespace(dataset=dataset, batch_size=4), **options,
    )  # fmt: skip


def test_hook_draws_at_its_interval(dataset):
    state = runner(pat(method="KD"), dataset)
    hook = PATVisualizationHook(interval=2)
    hook.after_val_epoch(state)  # of a validation alone
    hook.after_val_epoch(state)
    hook.before_train(state)
    for state.iter in (10, 20, 30, 40):
        hook.after_val_epoch(state)
    assert state.visualizer == [("cka", 20), ("cka", 40)]  # KD has neither regions nor prompts


def test_hook_draws_all_of_pat(model, dataset):
    state = runner(model, dataset)
    hook = PATVisualizationHook(region=(0, 1))
    hook.before_train(state)
    hook.after_val_epoch(state)
    assert state.visualizer == [("pat_attention", 0), ("pat_prompts", 0), ("cka", 0)]


def test_hook_needs_a_teacher_and_a_validation(model, dataset):
    with pytest.raises(ValueError, match="TimmClassifier has no teacher; take the hook out"):
        PATVisualizationHook().before_train(runner(model.student, dataset))
    state = runner(model, dataset)
    state.val_loop = None
    with pytest.raises(ValueError, match="after validations, and there are none"):
        PATVisualizationHook().before_train(state)
