import json

import pytest
from helpers.tools import ROOT, run_tool

TOOL = "analysis_tools/benchmark_step.py"
QUICK = ("--batch-size", "2", "--repeats", "2", "--warmup", "0")
PARTS = ("student", "teacher", "library", "kd")


@pytest.mark.parametrize(
    "pair, options",
    [
        (
            "swin_p-res18_digits",
            (
                "--size",
                "64",
                "96",
                "--amp",
                "--method",
                "pat_fast",
                "--cfg-options",
                "model.method.raa_dim=32",
            ),
        ),
        (
            "tinyvit_mini-mixer_mini_cifar10",
            ("--method", "pat_plus", "--also", "fitnet", "--cpu-time"),
        ),
    ],
)
def test_figures(pair, options, tmp_path):
    out = tmp_path / "figures.json"
    config = ROOT / f"configs/pat/{pair}.py"
    printed = run_tool(TOOL, config, *QUICK, *options, "--json", out)
    method = options[options.index("--method") + 1]
    assert f"{method}_over_floor" in printed and "images a second" in printed
    figures = json.loads(out.read_text())
    also = ["fitnet"] if "--also" in options else []
    prompted = ["prompted"] if "pat_fast" in options else []  # pat_plus has no prompts
    bare = ["bare"] if prompted else []
    assert set(figures["spread"]) == {*PARTS, method, *also, *prompted, *bare}
    for name in figures["spread"]:
        least, most = figures["spread"][name]
        assert 0 < least <= figures[name] <= most
        assert figures["memory_mib"]["peak"][name] >= 0
    floor = sum(figures[name] for name in ("student", "teacher", *prompted))
    assert figures["floor"] == pytest.approx(floor)
    # Of two runs, the median of the ratios lies between the ratios of the extremes.
    spread = figures["spread"]
    for ratio, top, bottom in (
        *((f"{name}_over_kd", name, ["kd"]) for name in ("student", method, *also)),
        ("kd_over_floor", "kd", ["student", "teacher"]),
        (f"{method}_over_floor", method, ["student", "teacher", *prompted]),
    ):
        low = spread[top][0] / sum(spread[name][1] for name in bottom)
        high = spread[top][1] / sum(spread[name][0] for name in bottom)
        assert low * 0.999 <= figures[ratio] <= high * 1.001
    assert figures["images_per_second"] == pytest.approx(2 / figures[method])
    saved = figures["memory_mib"]["saved"]
    assert set(saved) == {"student", method, *prompted} and min(saved.values()) > 0
    # A step keeps what its passes keep, and something of the method's own.
    assert figures["saved_over_floor"] > 1
    peak = figures["memory_mib"]["peak"]
    assert figures["peak_memory_mib"] == peak[method]
    # Nothing of a pass is freed before all is there that its backward pass needs.
    for name in saved:
        assert peak[name] >= saved[name] * 0.99


@pytest.mark.parametrize(
    "config, options, message",
    [
        (
            "students/faster-rcnn_r18_fpn_digits",
            (),
            "has no teacher, so there is no method",
        ),
        ("pat/missing", (), "does not exist"),
        ("pat/swin_p-res18_digits", ("--size", "1", "2", "3"), "one or two numbers, not 3"),
        ("pat/swin_p-res18_digits", ("--method", "patt"), "unknown method 'patt'"),
    ],
)
def test_bad_input_is_one_line(config, options, message):
    printed = run_tool(TOOL, ROOT / f"configs/{config}.py", *options, code=1)
    assert message in printed.splitlines()[-1] and "Traceback" not in printed
