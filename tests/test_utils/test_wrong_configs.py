"""Wrong configs are refused before anything is read, with one line that names the place."""

import random

import pytest
from helpers.tools import ROOT
from helpers.wrong_configs import (
    CLASSIFICATION,
    DETECTION,
    load,
    misspell,
    random_faults,
    written_faults,
)

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config import check_config
from pat_mmdet.utils.config_tables import TOP_KEYS
from pat_mmdet.utils.errors import ConfigError

SEED = 14


@pytest.fixture(scope="module", params=[DETECTION, CLASSIFICATION])
def config(request):
    """Path of a config and the config, which is right."""
    cfg = load(request.param)
    check_config(cfg)
    return request.param, cfg


def problem(cfg, fault):
    """Return what is wrong with the answer to a fault, None if nothing is."""
    try:
        check_config(fault.apply(cfg))
    except ConfigError as error:
        message = str(error)
        *_, section, name = f".{fault.key}".split(".")
        names = {section, name, fault.value if fault.kind == "typo" else name} - {""}
        if "\n" in message or not any(str(part) in message for part in names):
            return f"{fault}: {message}"
        return None
    except Exception as error:
        return f"{fault}: {error!r}"
    return f"{fault}: accepted"


def test_sample_of_wrong_configs(config):
    path, cfg = config
    rng = random.Random(SEED)
    faults = rng.sample(random_faults(path, cfg, SEED), 20) + rng.sample(
        written_faults(path, cfg), 20
    )
    assert [found for fault in faults if (found := problem(cfg, fault))] == []


@pytest.mark.full
def test_wrong_configs(config):
    path, cfg = config
    faults = [*random_faults(path, cfg, SEED), *written_faults(path, cfg)]
    assert len(faults) > 500
    assert [found for fault in faults if (found := problem(cfg, fault))] == []


@pytest.mark.parametrize("key", sorted(TOP_KEYS & {*load(CLASSIFICATION)} - {"vis_backends"}))
def test_misspelt_section(tmp_path, key):
    wrong = misspell(key, random.Random(key))
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {str(ROOT / CLASSIFICATION)!r}\n{wrong} = dict(type='A', b=1)\n")
    with pytest.raises(ConfigError, match=f"^{wrong} at the top of .*did you mean '{key}'"):
        load_config(str(path))
