import importlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.config import Config

from pat_mmdet.utils import load_config, prepare_environment, set_work_dir, setup_env
from pat_mmdet.utils.config import check_config
from pat_mmdet.utils.errors import ConfigError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


SAFETY = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """Restore the variables that a test may change."""
    for name in SAFETY:
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def pair(**options):
    return load_config(str(ROOT / PAIR), options)


def coco(**options):
    return load_config(str(ROOT / "configs/pat/swin_t-res18_coco.py"), options)


@pytest.mark.parametrize("path", ["configs/pat/nothing.py", "configs/pat", ""])
def test_config_that_does_not_exist(path):
    with pytest.raises(FileNotFoundError, match=rf"config {path!r} does not exist.*configs"):
        load_config(path)


def write(folder, text, base=PAIR):
    """Writes a user's config on top of a shipped one, and gives its path."""
    path = folder / "mine.py"
    path.write_text(f"_base_ = {str(ROOT / base)!r}\n{text}")
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\n", r"config '.*mine.py', line 2: .*never closed"),
        ("x = y\n", r"config '.*mine.py' cannot be read: NameError: name 'y'"),
        ("train_cfg = dict(type=dict(a=1))\n", r"cannot be read: TypeError: type=\{'a': 1\}"),
    ],
)
def test_error_in_a_config(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_base_with_a_syntax_error_is_named(tmp_path):
    (tmp_path / "base.py").write_text("a = dict(\n")
    (tmp_path / "top.py").write_text("_base_ = 'base.py'\n")
    with pytest.raises(ConfigError, match=r"config '.*base.py', line 1"):
        load_config(str(tmp_path / "top.py"))


@pytest.mark.parametrize("file", ["top.yaml", "base.yml"])
def test_python_tags_in_yaml(file, tmp_path):
    ran = tmp_path / "ran"
    call = "!!python/object/apply:pathlib.Path"
    text = f"model: {call}.touch [{call} [{ran}]]"
    (tmp_path / file).write_text(text + "\n")
    (tmp_path / "top.py").write_text("_base_ = 'base.yml'\n")
    path = tmp_path / ("top.py" if file == "base.yml" else file)
    refusal = r"cannot be read: ConstructorError: .*python/object"
    with pytest.raises(ConfigError, match=refusal) as error:
        load_config(str(path))
    assert not ran.exists() and "\n" not in str(error.value)


def test_missing_base_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"top.py' cannot be read: .*gone.py"):
        path = tmp_path / "top.py"
        path.write_text("_base_ = 'gone.py'\n")
        load_config(str(path))


def test_option_that_leads_nowhere():
    with pytest.raises(ConfigError, match=r"--cfg-options train_dataloader.dataset.pipeline.9.a=1"):
        pair(**{"train_dataloader.dataset.pipeline.9.a": 1})


@pytest.mark.parametrize("size", [192, (192,), (0, 64), "ab"])
def test_input_size_is_a_pair(size):
    with pytest.raises(ConfigError, match=r"model.input_size=.* takes a list of 2, each"):
        pair(**{"model.input_size": size})


def test_input_size_by_its_old_name():
    cfg = pair(**{"model.method.input_size": (64, 96)})
    assert cfg.model.input_size == (64, 96) and "input_size" not in cfg.model.method


def test_teacher_as_path_or_path_with_changes(tmp_path):
    teacher = "teachers/faster-rcnn_swin-p_fpn_digits.py"
    whole = load_config(str(ROOT / "configs" / teacher)).model
    assert (
        load_config(write(tmp_path, f"model = dict(teacher={teacher!r})\n")).model.teacher == whole
    )
    cfg = load_config(write(tmp_path, "model = dict(teacher=dict(neck=dict(num_outs=6)))\n"))
    assert cfg.model.teacher.neck == {**whole.neck, "num_outs": 6}
    assert pair(**{"model.teacher.neck.num_outs": 6}).model.teacher == cfg.model.teacher
    with pytest.raises(FileNotFoundError, match=r"model.teacher='a.py': there is no such config"):
        load_config(write(tmp_path, "model = dict(teacher='a.py')\n"))


def test_settings_as_an_option():
    path = str(ROOT / "configs/pat/swin_t-res18_coco.py")
    by_flag = load_config(path, None, "ofa", "published")
    by_option = load_config(path, {"settings": "published"}, "ofa")
    assert by_option.to_dict() == by_flag.to_dict() and by_flag.model.method.kd_weight == 0
    with pytest.raises(ConfigError, match="--settings equal and settings='published'"):
        load_config(path, {"settings": "published"}, "ofa", "equal")
    with pytest.warns(UserWarning, match="settings='published' changes nothing: the config holds"):
        pair(settings="published")


def test_published_settings_keep_user_values(tmp_path):
    base = "configs/pat/swin_t-mbv2_coco.py"
    path = write(tmp_path, "train_cfg = dict(max_iters=1000)\n", base)
    assert load_config(path).train_cfg.max_iters == 1000
    with pytest.raises(
        ConfigError, match=r"have train_cfg.max_iters=270000 but .*mine.py sets 1000"
    ):
        load_config(path, settings="published")
    path = write(tmp_path, "optim_wrapper = dict(optimizer=dict(lr=0.1))\n", base)
    assert load_config(path, settings="published").train_cfg.max_iters == 270000


def test_runner_refuses_unapplied_settings(tmp_path):
    path = write(tmp_path, "settings = 'published'\n", "configs/pat/swin_t-mbv2_coco.py")
    with pytest.raises(ConfigError, match=r"does not apply the method's options .*270000.*tools"):
        check_config(Config.fromfile(path))


def test_other_options_are_applied():
    cfg = pair(**{"model.method.raa_grid": 3, "train_dataloader.batch_size": 2})
    assert cfg.model.method.raa_grid == 3 and cfg.train_dataloader.batch_size == 2


def test_default_hooks_without_a_hook():
    off = {f"default_hooks.{name}": None for name in ("progress", "finite_check", "timer")}
    hooks = load_config(str(ROOT / PAIR), off).default_hooks
    # The Runner knows its own by their names, and takes None for no other.
    assert "progress" not in hooks and "finite_check" not in hooks and hooks.timer is None


def test_work_dir_precedence():
    cfg = pair()
    set_work_dir(cfg, None)
    assert cfg.work_dir == "work_dirs/swin_p-res18_digits"
    cfg = pair(work_dir="mine/here")
    set_work_dir(cfg, None)
    assert cfg.work_dir == "mine/here"
    set_work_dir(cfg, "other")
    assert cfg.work_dir == "other"


@pytest.fixture
def printed(monkeypatch):
    messages = []
    monkeypatch.setattr(setup_env, "print_log", lambda *args: messages.append(args))
    return messages


@NO_GPU
def test_without_gpu_mixed_precision_is_off(printed):
    cfg = coco(**{"optim_wrapper.dtype": "bfloat16"})
    prepare_environment(cfg, "none")
    assert cfg.launcher == "none"
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert set(cfg.optim_wrapper) == {"type", "optimizer"}
    assert cfg.optim_wrapper.optimizer.lr == 0.01
    ((message, logger, level),) = printed
    assert "full precision" in message and (logger, level) == ("current", 30)
    assert "model_wrapper_cfg" not in cfg


@NO_GPU
def test_full_precision_without_gpu_is_silent(printed):
    cfg = pair()
    before = cfg.optim_wrapper.to_dict()
    prepare_environment(cfg, "none")
    assert cfg.optim_wrapper.to_dict() == before and not printed
    cfg.pop("optim_wrapper")
    prepare_environment(cfg, "none")


class Foreign:
    def __reduce__(self):
        return (print, ("foreign code ran",))


@pytest.mark.parametrize("gpu", [False, True])
def test_safe_loading(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "extra": Foreign()}, path)
    prepare_environment(pair(), "none")
    for options in ({}, dict(weights_only=False)):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, **options)
    assert "foreign code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("launcher", ["pytorch", "slurm", "mpi"])
def test_launcher_without_its_environment(launcher, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=rf"--launcher {launcher} is for .* is not set"):
        prepare_environment(pair(), launcher)


def test_with_gpu_mixed_precision_stays(printed, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = coco()
    prepare_environment(cfg, "pytorch")
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.loss_scale == "dynamic"
    assert cfg.env_cfg.dist_cfg.backend == "nccl" and cfg.launcher == "pytorch"
    assert "model_wrapper_cfg" not in cfg and not printed


def test_gloo_without_gpu(monkeypatch, printed):
    joined = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, timeout: joined.append((backend, timeout.total_seconds())),
    )
    cfg = pair()
    cfg.env_cfg.dist_cfg.timeout = 77
    prepare_environment(cfg, "pytorch")
    assert joined == [("gloo", 77)]
    assert cfg.env_cfg.dist_cfg == dict(backend="gloo", timeout=77)
    assert cfg.model_wrapper_cfg.type == "MMDistributedDataParallel"
    assert cfg.model_wrapper_cfg.find_unused_parameters is False
    assert cfg.model_wrapper_cfg.broadcast_buffers is False


@pytest.mark.parametrize("method", [None, "none"])
def test_compile_flag(method, tmp_path):
    train = vars(importlib.import_module("pat_mmdet.cli.train"))
    cfg = load_config(str(ROOT / "configs/pat/swin_p-res18_digits.py"), None, method)
    flags = dict.fromkeys(("method", "settings", "resume"), None)
    flags |= dict.fromkeys(("amp", "auto_scale_lr"), False)
    flags["log"] = []
    args = SimpleNamespace(config="c.py", work_dir=str(tmp_path), compile=True, **flags)
    train["apply_flags"](cfg, args)
    assert (cfg.model.get("compile"), cfg.get("compile")) == (
        (None, True) if method else (True, None)
    )


def test_errors_of_the_tools_are_ours(monkeypatch, tmp_path):
    # --auto-scale-lr without a base batch size is refused in tools/train.py itself.
    train = vars(importlib.import_module("pat_mmdet.cli.train"))
    cfg = pair(work_dir=str(tmp_path))
    cfg.pop("auto_scale_lr")
    args = SimpleNamespace(
        config="c.py",
        work_dir=None,
        method=None,
        settings=None,
        amp=False,
        compile=False,
        auto_scale_lr=True,
        resume=None,
        log=[],
    )
    with pytest.raises(ValueError, match=r"config 'c\.py' does not say what batch"):
        train["apply_flags"](cfg, args)
