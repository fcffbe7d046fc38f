"""The page that compares networks."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers.runs import evaluation, log, step
from sklearn.datasets import load_sample_images

from pat_mmdet.visualization.page import COLORS, draw_curves, encode_image, render_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
EVIL = "</script><script>document.title = 'run'</script>"


def page_data(text):
    """The data in a page."""
    return json.loads(re.search(r'<script [^>]*id="data">(.*?)</script>', text, re.DOTALL)[1])


def image(name, *predictions):
    """A gray image with an object at (10, 10), 20 pixels wide, and boxes of two networks.

    A prediction is a label, a score and the object that it found.
    """
    rows = [
        [[10, 10, 20, 20, label, score, place] for label, score, place in network]
        for network in predictions
    ]
    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    return dict(**encode_image(pixels), name=name, truth=[[10, 10, 20, 20, 0, 0]], predictions=rows)


@pytest.fixture
def data():
    return dict(
        title=EVIL,
        source="{{data}}",
        task="detection",
        classes=[EVIL, "cat"],
        networks=[
            dict(name=name, color=COLORS[0], checkpoint=EVIL, parameters=2_000_000)
            for name in ("teacher", EVIL)
        ],
        num_tested=3,
        threshold=0.3,
        min_score=0.05,
        metrics=[dict(name="mAP", values=[0.5, None])],
        class_metrics=[dict(name=EVIL, values=[0.5, 0.25]), dict(name="cat", values=[None, 0.75])],
        images=[
            image("both.png", [(0, 0.9, 0)], [(0, 0.8, 0)]),
            image("sure.png", [(0, 0.9, 0)], [(0, 0.4, 0)]),
            image("wrong.png", [(0, 0.9, 0)], [(1, 0.6, -1)]),
        ],
    )


def test_data_is_in_the_page_and_names_are_no_html(data):
    page = render_page(data, curves="")
    assert page_data(page) == data
    assert page.count("</script>") == 2 and EVIL not in page
    # Nothing is loaded: what the page names is inside.
    assert not re.search(r"https?:|<link|src=|@import", page.replace("src = image.jpeg", ""))


def test_images_shrink_to_fit_in_a_mail():
    photo = load_sample_images().images[0][..., ::-1]
    assert photo.shape == (427, 640, 3)
    encoded = encode_image(photo)
    assert (encoded["width"], encoded["height"]) == (480, 320)
    assert 200 * len(encoded["jpeg"]) < 15e6
    small = encode_image(photo[:30, :1])
    assert (small["width"], small["height"]) == (1, 30)


def test_curves_of_the_runs(tmp_path):
    log(tmp_path / "a", "1", step(1, loss_kd=2.0), step(2, loss_kd=1.0), evaluation(2, 0.3))
    log(tmp_path / "b", "1", step(1, **{"loss_$x$<": 1.0}))
    curves = draw_curves([None, tmp_path / "a", tmp_path / "b", tmp_path / "none"])
    titles = re.findall("<!-- (.*?) -->", curves)
    assert curves.startswith("<svg") and {"coco/bbox_mAP", "loss", "loss_kd"} < set(titles)
    assert COLORS[1] in curves and COLORS[2] in curves
    assert draw_curves([None, tmp_path / "none"]) == ""


SCRIPT = """
<script>
const report = [];
function look(change) {
  for (const [id, value] of Object.entries(change)) {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("input"));
    document.getElementById(id).dispatchEvent(new Event("change"));
  }
  report.push([...document.querySelectorAll(".item")].map((item) => [
    item.querySelector("header span").textContent,
    ...["right", "wrong", "missed"].map((kind) => item.querySelectorAll(".box." + kind).length),
  ]));
}
look({});
look({threshold: 0.5});
look({threshold: 0.7});
look({threshold: 0.3, order: "file"});
look({order: "1 0", class: 1});
const node = document.createElement("pre");
node.id = "report";
node.textContent = JSON.stringify([document.title, report]);
document.body.append(node);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_controls_in_a_browser(data, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render_page(data, curves="") + SCRIPT)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    text = re.search('<pre id="report">(.*?)</pre>', result.stdout)[1]
    title, report = json.loads(html.unescape(text))
    assert title == EVIL
    # Name, and boxes of both networks that are right, wrong and missed.
    wrong, both, sure = ["wrong.png", 1, 1, 1], ["both.png", 2, 0, 0], ["sure.png", 2, 0, 0]
    lost = ["sure.png", 1, 0, 1]
    assert report == [
        [wrong, both, sure],
        [wrong, lost, both],
        [lost, ["wrong.png", 1, 0, 1], both],
        [both, sure, wrong],
        [["wrong.png", 0, 1, 0]],
    ]
