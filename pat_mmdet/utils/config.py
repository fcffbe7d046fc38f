"""Reading configs the way all tools do."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from pat_mmdet.utils.cached_config import CachedConfig
from pat_mmdet.utils.config_files import base_files, overriding_file
from pat_mmdet.utils.config_parts import SPLITS
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.model_zoo import ZOOS, ZooModel, find_checkpoint, find_model, near_names
from pat_mmdet.utils.nested import walk
from pat_mmdet.utils.paths import CONFIGS, find_config

SETTINGS = {
    "equal": "the same iterations, learning rate and EMA for all methods, those of the config",
    "published": "each method with the settings that its authors' run had, as the config's "
    "`published` says",
}
TASKS = ("detection", "classification")
# What load_config takes out of a config, or adds to it; all else is as in Config.fromfile.
BOOKKEEPING = ("method_options", "published", "settings")
# Default hooks that every Runner has unless they are None.
MMENGINE_HOOKS = (
    "checkpoint",
    "logger",
    "param_scheduler",
    "runtime_info",
    "sampler_seed",
    "timer",
)


def load_config(
    path: str | os.PathLike,
    options: dict | None = None,
    method: str | None = None,
    settings: str | None = None,
) -> Config:
    """Read a config, put a method in place, apply options of the command line, and check it.

    Without options it is what ``Config.fromfile`` gives, but for :data:`BOOKKEEPING`, default hooks
    that are None, and for a ``data_root`` or ``classes`` at the top of a user's config, see
    :mod:`pat_mmdet.utils.data_settings`, or a ``data``, see :mod:`pat_mmdet.utils.data_folder`,
    which is taken out. A config may hold options for single methods, by dotted
    key: ``method_options`` are what a method is used with on this pair, ``published`` what its
    published run changed in the training.

    Args:
        path (str | os.PathLike): Path of the config, see :func:`find_config`.
        options (dict, optional): Values by dotted key, as ``--cfg-options`` gives them.
        method (str, optional): Name of a method overlay, see :func:`apply_method`.
        settings (str, optional): ``'equal'``, training all methods alike, or ``'published'``; by
            default those of the config, or equal ones.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is no such config, or folder of ``data``.
        ImportError: If a package is missing that reads the data.
        ConfigError: If the config cannot be read, contradicts itself, or has a key, method or
            setting that is not known.
        ValueError: If the data cannot be read.
    """
    # Not above, as `--help` does not wait for torch.
    from pat_mmdet.utils.config_check import check_arguments, check_options, check_sections
    from pat_mmdet.utils.data_check import check_data_settings
    from pat_mmdet.utils.data_folder import pop_data, spread_folder
    from pat_mmdet.utils.data_settings import KEYS, spread
    from pat_mmdet.utils.run_check import check_run

    cfg = CachedConfig.from_config(_read(find_config(path)))
    check_sections(cfg)
    options = dict(options or {})
    folder = pop_data(cfg, options)
    if options.get("settings", settings) != (settings or options.get("settings")):
        raise ConfigError(
            f"--settings {settings} and settings={options['settings']!r} in --cfg-options differ"
        )
    given = settings or options.get("settings")
    if given == "published" and not cfg.get("published"):
        warnings.warn(
            "settings='published' changes nothing: the config holds no published settings that "
            "differ from its own",
            stacklevel=2,
        )
    cfg.settings = settings or options.pop("settings", None) or cfg.get("settings", "equal")
    if cfg.settings not in SETTINGS:
        raise ConfigError(f"unknown settings {cfg.settings!r}; known: {', '.join(SETTINGS)}")
    method_options = _options_of_method(cfg, method)
    for key in ("method_options", "published"):
        cfg.pop(key, None)
    expand_teacher(cfg)
    if "input_size" in cfg.get("model", {}) and "model.method.input_size" in options:
        # Where it stood in earlier versions.
        options.setdefault("model.input_size", options.pop("model.method.input_size"))
    check_options(options)
    if method is not None:
        _check_teacher(cfg)
    before = {key: cfg.get(key) for key in KEYS}
    every = {**method_options, **options}
    # Options of the method belong to the one that is put in place, all others to the config.
    for_method = {key: every[key] for key in every if key.startswith("model.method.")}
    _replace_teacher(cfg, every)
    _merge(cfg, {key: every[key] for key in every if key not in for_method})
    expand_teacher(cfg)
    check_arguments(cfg)
    if folder is None:
        spread(cfg, options, before)
    if method is not None:
        apply_method(cfg, method)
    if for_method and "method" in cfg.get("model", {}):
        _merge(cfg, for_method)
    if folder is not None:
        spread_folder(cfg, folder)
    check_arguments(cfg)  # what the method's options and the settings have changed
    check_run(cfg)
    check_data_settings(cfg)
    _remove_disabled_hooks(cfg)
    return cfg


def _remove_disabled_hooks(cfg: Config) -> None:
    """Remove default hooks that are None; the Runner takes None for hooks of MMEngine alone."""
    hooks = cfg.get("default_hooks") or {}
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in MMENGINE_HOOKS:
            del hooks[name]


def is_rgb(cfg: Config) -> bool:
    """Return True if the network of a config takes RGB images.

    Data sets that hold their images in memory, such as CIFAR-100, have them in RGB. What a test
    pipeline loads is BGR.
    """
    from mmcv.transforms import LoadImageFromFile
    from mmengine.registry import TRANSFORMS

    first = TRANSFORMS.build(dict(cfg.test_dataloader.dataset.pipeline[0]))
    return not isinstance(first, LoadImageFromFile)


def expand_teacher(cfg: Config) -> None:
    """Put the model config of a teacher in place of its path or name, as the distiller does.

    Raises:
        ConfigError: If a teacher is named and its checkpoint is that of another name.
    """
    if not is_distiller(cfg):
        return
    zoo, checkpoint = _zoo_model(cfg.model.teacher), cfg.model.get("teacher_checkpoint")
    other = find_checkpoint(checkpoint) if zoo and checkpoint else None
    if other is not None and checkpoint not in (zoo.url, zoo.checkpoint):
        raise ConfigError(
            f"model.teacher_checkpoint={checkpoint!r} is of another model than model.teacher; set "
            f"it to {zoo.checkpoint!r}"
        )
    # Pretrained weights are the distiller's business: the checkpoint may still change.
    cfg.model.teacher = teacher_model(cfg.model.teacher, checkpoint=None)


def _replace_teacher(cfg: Config, options: dict[str, Any]) -> None:
    """Put a teacher of the command line in place of the config's, if it is a path or a name.

    A name of a model zoo brings its checkpoint along.

    Args:
        cfg (Config): Config of a distiller, changed in place.
        options (dict): Values by dotted key; those that say so are taken out.
    """
    if not is_distiller(cfg):
        return
    teacher = options.get("model.teacher")
    teacher = {"config": teacher} if isinstance(teacher, str) else dict(teacher or {})
    if "model.teacher.config" in options:
        teacher["config"] = options.pop("model.teacher.config")
    if "config" not in teacher:
        return
    options.pop("model.teacher", None)
    cfg.model.teacher = teacher
    zoo = _zoo_model(teacher)
    if zoo is not None:
        options.setdefault("model.teacher_checkpoint", zoo.checkpoint)


def _zoo_model(teacher: str | Mapping) -> ZooModel | None:
    """Return the model of a zoo that a teacher names; None if it is something else."""
    name = teacher if isinstance(teacher, str) else teacher.get("config")
    if name is None or _teacher_file(name) is not None:
        return None
    return find_model(name)


def check_config(cfg: Config) -> None:
    """Check that plain MMEngine runs a config to the same effect as the tools do.

    Args:
        cfg (Config): A config as the Runner has it.

    Raises:
        ConfigError: If the tools would have changed it or refused it.
    """
    from pat_mmdet.utils.config_check import check_arguments, check_sections
    from pat_mmdet.utils.data_check import check_class_folders, check_data_settings
    from pat_mmdet.utils.data_folder import is_set
    from pat_mmdet.utils.data_settings import KEYS, pending
    from pat_mmdet.utils.run_check import check_run

    remedy = (
        "run it by the tools of pat_mmdet, write the values in their places, or make a plain "
        "config of it: tools/misc/print_config.py CONFIG --save-path plain.py"
    )
    cfg = deepcopy(cfg)
    check_sections(cfg)
    expand_teacher(cfg)
    check_arguments(cfg)
    if is_set(cfg):
        raise ConfigError(
            f"data={cfg.data!r} at the top of {cfg.filename}: MMEngine does not read it; {remedy}"
        )
    for key in KEYS:
        for change in pending(cfg, key):
            raise ConfigError(
                f"{key}={cfg[key]!r} at the top of {cfg.filename} but "
                f"{change.path}={change.old!r}: MMEngine does not put it there; {remedy}"
            )
    options = _options_of_method(cfg, None)
    if options:
        raise ConfigError(f"MMEngine does not apply the method's options {options}; {remedy}")
    check_run(cfg)
    check_data_settings(cfg)
    check_class_folders(cfg, *SPLITS)


def _read(path: Path) -> Config:
    """Read a config file.

    Raises:
        ConfigError: If it or a base of it has an error, or is missing.
    """
    try:
        return Config.fromfile(path)
    except SyntaxError:
        # MMEngine names a temporary file in place of the one with the error.
        _check_syntax(path)
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"config {str(path)!r} cannot be read: {type(error).__name__}: {lines[0][:300]}"
        ) from error


def _check_syntax(path: Path) -> None:
    """Check the syntax of a config and of its bases.

    Raises:
        ConfigError: If there is an error; it names the file and the line.
    """
    try:
        ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"config {str(path)!r}, line {error.lineno}: {error.msg}") from None
    for base in base_files(str(path)):
        _check_syntax(Path(base))


def _merge(cfg: Config, options: Mapping[str, Any]) -> None:
    """Merge options by dotted key.

    Raises:
        ConfigError: If a key leads through something that is no dict or list.
    """
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError) as error:
            reason = str(error).strip("'\"").splitlines()[0][:200]
            raise ConfigError(
                f"--cfg-options {key}={value!r} does not fit the config: {reason}"
            ) from error


def _options_of_method(cfg: Config, method: str | None) -> dict[str, Any]:
    """Return the options that a config holds for a method, by default for its own.

    Raises:
        ConfigError: If the user's config gives one of them another value than the config that holds
            the published settings.
    """
    if method is None and is_distiller(cfg):
        method = cfg.model.method.get("type", "").lower()
    options = dict((cfg.get("method_options") or {}).get(method, {}))
    if cfg.get("settings") == "published":
        published = (cfg.get("published") or {}).get(method, {})
        _refuse_changed(cfg, published)
        options.update(published)
    return options


def _refuse_changed(cfg: Config, published: Mapping[str, Any]) -> None:
    """Refuse to put published settings over a user's own.

    Raises:
        ConfigError: If there is such a setting.
    """
    override = overriding_file(cfg.filename, "published")
    if override is None:
        return
    origin = Config.fromfile(override.path)
    for key, value in published.items():
        was, now = _at(origin, key), _at(cfg, key)
        if was is not None and now not in (was, value):
            raise ConfigError(
                f"the published settings have {key}={value!r} but {cfg.filename} sets {now!r}; "
                "take one of the two out"
            )


def _at(cfg: Any, key: str) -> Any:
    """Return the value at a dotted key, None if there is none."""
    for part in key.split("."):
        if isinstance(cfg, (list, tuple)) and part.isdigit():
            cfg = cfg[int(part)] if int(part) < len(cfg) else None
        else:
            cfg = cfg.get(part) if hasattr(cfg, "get") else None
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Set ``work_dir`` from the command line, the config, or the config's file name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(cfg.filename).stem)


def is_distiller(cfg: Config) -> bool:
    """Return True if a config trains a student with a teacher."""
    model = cfg.get("model", {})
    return "student" in model and "teacher" in model


def student_model(cfg: Config) -> ConfigDict:
    """Return the config of a distiller's student, or of the model itself."""
    return cfg.model.student if is_distiller(cfg) else cfg.model


def teacher_model(teacher: str | dict, checkpoint: str | None) -> ConfigDict:
    """Return the model config of a distiller's teacher.

    Args:
        teacher (str | dict): ``model.teacher`` of a distiller: a model config, or the path of a
            config file, whose ``model`` is taken. A relative path begins in the current folder,
            else in the shipped configs (``'teachers/vit_s_cifar100.py'``). In place of a path there
            may be a name of a model zoo, see :func:`find_model`. With the path or name under
            ``config``, the rest of a dict is merged into that model.
        checkpoint (str, optional): What all weights come from. With one, timm does not fetch its
            pretrained ones.

    Returns:
        ConfigDict: A copy.

    Raises:
        FileNotFoundError: If there is no such config file.
        ConfigError: If the file has no ``model``.
    """
    if isinstance(teacher, str):
        teacher = {"config": teacher}
    teacher = ConfigDict(deepcopy(teacher))
    if "config" in teacher:
        whole = Config({"model": _model_of(teacher.pop("config"))})
        whole.merge_from_dict({"model": teacher})
        teacher = whole.model
    for _, node in walk(teacher) if checkpoint is not None else ():
        if node.get("pretrained") is True:
            node["pretrained"] = False
    return teacher


def _teacher_file(config: str) -> Path | None:
    """Return the path of a teacher's config file, None if there is none."""
    places = (Path(config), CONFIGS / config, CONFIGS.parent / config)
    return next((place for place in places if place.is_file()), None)


def _model_of(config: str) -> ConfigDict:
    """Read the model of a teacher's config file, or of a name of a model zoo."""
    path = _teacher_file(config)
    if path is None:
        zoo = find_model(config)
        if zoo is None:
            near = [] if config.endswith(".py") else near_names(config)
            raise FileNotFoundError(
                f"model.teacher={config!r}: there is no such config file, neither in "
                f"{os.getcwd()!r} nor in the shipped {str(CONFIGS)!r}, and no such model in the "
                f"zoos of {' and '.join(ZOOS)}"
                + (f"; did you mean {', '.join(near)}?" if near else "; check the path")
            )
        path = zoo.config
    model = _read(path).get("model")
    if model is None:
        raise ConfigError(f"model.teacher: the config {str(path)!r} has no model")
    return model


def _check_teacher(cfg: Config) -> None:
    """Check that a config has a teacher, whose method may be chosen."""
    if not is_distiller(cfg):
        raise ConfigError(
            f"config {cfg.filename!r} has no teacher, so there is no method to choose; take one "
            "of configs/pat"
        )


def apply_method(cfg: Config, name: str) -> None:
    """Put a method in place of the config's own; ``none`` leaves the student alone.

    Overlays are looked for in the ``_base_/methods`` folders beside and above the config, then in
    the project's; in each, one for the task (``classification/pat.py``) goes before one for both.

    Args:
        cfg (Config): Config of a distiller, changed in place. Its ``input_size`` is kept, and all
            its settings if it has this method already: a variant of that method (``pat_fast`` of
            ``pat``) then changes what sets it apart, and nothing else.
        name (str): Name of an overlay.

    Raises:
        ConfigError: If the config has no teacher, or there is no such method.
    """
    _check_teacher(cfg)
    method = _overlay(cfg, name)
    own = cfg.model.method
    if method is None:
        cfg.model = cfg.model.student
    elif method["type"] != own.type:
        kept = {"input_size": own.input_size} if "input_size" in own else {}
        cfg.model.method = {**kept, **method}
    else:
        plain = _overlay(cfg, method["type"].lower())
        own.update({key: method[key] for key in method if method[key] != plain.get(key)})


def task_settings(method: dict, task: str) -> dict:
    """Merge a method's arguments for one task into the others, which have priority."""
    common = {key: method[key] for key in method if key not in TASKS}
    return {**method.get(task, {}), **common}


def _overlay(cfg: Config, name: str) -> dict | None:
    """Read the method of an overlay, None for ``none``.

    Raises:
        ConfigError: If there is no such overlay; all are listed.
    """
    task = _task(cfg)
    folders = [
        folder / "_base_" / "methods" for folder in (*Path(cfg.filename).resolve().parents, CONFIGS)
    ]
    places = [place for folder in folders for place in (folder / task, folder)]
    for place in places:
        if (place / f"{name}.py").is_file():
            method = Config.fromfile(place / f"{name}.py").method
            if method is None:
                return None
            # Overlays of users may hold the arguments for a task in a dict of its name.
            return task_settings(method, task)
    known = sorted({path.stem for place in places for path in place.glob("*.py")})
    raise ConfigError(f"unknown method {name!r}; known methods: {', '.join(known)}")


def _task(cfg: Config) -> str:
    """Return the task of a distiller: ``'detection'`` or ``'classification'``."""
    return TASKS[1] if "Classification" in str(cfg.model.type) else TASKS[0]
