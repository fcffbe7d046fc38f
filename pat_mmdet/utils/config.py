"""Reading configs the way all tools do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.fileio import isdir
from mmengine.logging import print_log

from pat_mmdet.utils.cached_config import CachedConfig
from pat_mmdet.utils.paths import CONFIGS, find_config

SETTINGS = {
    "equal": "the same iterations, learning rate and EMA for all methods, those of the config",
    "published": "each method with the settings that its authors' run had, as the config's "
    "`published` says",
}


def load_config(
    path: str,
    options: dict | None = None,
    method: str | None = None,
    settings: str | None = None,
) -> Config:
    """Reads a config, puts a method in place, and applies options of the command line.

    A config may hold options for single methods, by dotted key: ``method_options`` are what a
    method is used with on this pair, ``published`` what its published run changed in the training.

    Args:
        path (str): Path of the config, see :func:`find_config`.
        options (dict, optional): Values by dotted key, as ``--cfg-options`` gives them.
        method (str, optional): Name of a method overlay, see :func:`apply_method`.
        settings (str, optional): ``'equal'``, training all methods alike, or ``'published'``; by
            default those of the config, or equal ones.

    Returns:
        Config: The config, with ``data_root`` and ``classes`` carried to every place.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the method or the settings are unknown.
    """
    cfg = CachedConfig.from_config(Config.fromfile(find_config(path)))
    cfg.settings = settings or cfg.get("settings", "equal")
    if cfg.settings not in SETTINGS:
        raise ValueError(f"unknown settings {cfg.settings!r}; known: {', '.join(SETTINGS)}")
    options = {**_options_of_method(cfg, method), **(options or {})}
    # Options of the method belong to the one that is put in place, all others to the config.
    for_method = {key: options[key] for key in options if key.startswith("model.method.")}
    cfg.merge_from_dict({key: options[key] for key in options if key not in for_method})
    if method is not None:
        apply_method(cfg, method)
    if for_method and "method" in cfg.model:
        cfg.merge_from_dict(for_method)
    _bind_data(cfg)
    return cfg


def _options_of_method(cfg: Config, method: str | None) -> dict:
    """Takes out of a config the options that it holds for single methods, and gives one's."""
    by_method = cfg.pop("method_options", {})
    published = cfg.pop("published", {})
    if method is None and is_distiller(cfg):
        method = cfg.model.method.get("type", "").lower()
    options = dict(by_method.get(method, {}))
    if cfg.settings == "published":
        options.update(published.get(method, {}))
    return options


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Sets ``work_dir`` from the command line, the config, or the config's file name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(cfg.filename).stem)


def is_distiller(cfg: Config) -> bool:
    """Tells whether a config trains a student with a teacher."""
    model = cfg.get("model", {})
    return "student" in model and "teacher" in model


def student_model(cfg: Config) -> ConfigDict:
    """The config of the student of a distiller, or of the model itself."""
    return cfg.model.student if is_distiller(cfg) else cfg.model


def teacher_model(teacher: str | dict, checkpoint: str | None) -> ConfigDict:
    """Return the model config of a distiller's teacher.

    Args:
        teacher (str | dict): ``model.teacher`` of a distiller: a model config, or the path of a
            config file, whose ``model`` is taken. A relative path begins in the current folder,
            else in the shipped configs (``'teachers/vit_s_cifar100.py'``).
        checkpoint (str, optional): What all weights come from. With one, timm does not fetch its
            pretrained ones.

    Returns:
        ConfigDict: A copy.

    Raises:
        FileNotFoundError: If there is no such config file.
        ValueError: If the file has no ``model``.
    """
    if isinstance(teacher, str):
        places = (Path(teacher), CONFIGS / teacher, CONFIGS.parent / teacher)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"model.teacher={teacher!r}: there is no such config file, neither in "
                f"{os.getcwd()!r} nor in the shipped {str(CONFIGS)!r}; check the path"
            )
        teacher = Config.fromfile(path).get("model")
        if teacher is None:
            raise ValueError(f"model.teacher: the config {str(path)!r} has no model")
    teacher = ConfigDict(deepcopy(teacher))
    for node in _walk(teacher) if checkpoint is not None else ():
        if node.get("pretrained") is True:
            node.pretrained = False
    return teacher


def apply_method(cfg: Config, name: str) -> None:
    """Puts a method in place of the config's own; ``none`` leaves the student alone.

    Args:
        cfg (Config): Config of a distiller, changed in place. Its ``input_size`` is kept, and all
            its settings if it has this method already: a variant of that method (``pat_fast`` of
            ``pat``) then changes what sets it apart, and nothing else.
        name (str): Name of an overlay in ``configs/_base_/methods``.

    Raises:
        ValueError: If the config has no teacher, or there is no such method.
    """
    if not is_distiller(cfg):
        raise ValueError(
            f"config {cfg.filename!r} has no teacher, so there is no method to choose; take one "
            "of configs/pat"
        )
    folder = _methods_folder(cfg)
    overlay = folder / f"{name}.py"
    if not overlay.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.py")))
        raise ValueError(f"unknown method {name!r}; known methods: {known}")
    method = Config.fromfile(overlay).method
    own = cfg.model.method
    if method is None:
        cfg.model = cfg.model.student
    elif method.type != own.type:
        kept = {"input_size": own.input_size} if "input_size" in own else {}
        cfg.model.method = {**kept, **method}
    else:
        plain = Config.fromfile(folder / f"{method.type.lower()}.py").method
        own.update({key: method[key] for key in method if method[key] != plain.get(key)})


def _methods_folder(cfg: Config) -> Path:
    """The overlays beside the config, or else those of the project."""
    for folder in (*Path(cfg.filename).resolve().parents, CONFIGS):
        if (folder / "_base_" / "methods").is_dir():
            return folder / "_base_" / "methods"
    raise ValueError(
        f"no _base_/methods folder beside {cfg.filename!r}; keep configs under the project's "
        "configs/ folder or copy that folder"
    )


def prepare_environment(cfg: Config, launcher: str) -> None:
    """Makes loading safe, and fits precision and process groups to a machine without a GPU.

    Every file that torch reads from here on is read with ``weights_only=True``, also by older
    versions of torch and by other libraries. Without a GPU, mixed precision is switched off with a
    warning, as mmengine has none on the CPU, and several processes are joined with gloo here,
    because mmengine asks for a GPU even then.

    Args:
        cfg (Config): Changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: If the launcher needs a GPU and there is none.
    """
    # Not above, as `--help` does not wait for torch.
    import torch

    from pat_mmdet.models.acceleration.onednn import disable_malloc_trim

    cfg.launcher = launcher
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if torch.cuda.is_available():
        return
    disable_malloc_trim()
    wrapper = cfg.get("optim_wrapper") or {}
    if wrapper.get("type") == "AmpOptimWrapper":
        print_log("no GPU: full precision instead of mixed", "current", logging.WARNING)
        wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)
    if launcher in ("slurm", "mpi"):
        raise ValueError(
            f"--launcher {launcher} needs a GPU, and there is none here; on the CPU use "
            "tools/dist_train.sh"
        )
    if launcher == "pytorch":
        cfg.env_cfg.dist_cfg = dict(backend="gloo")
        cfg.setdefault(
            "model_wrapper_cfg",
            dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=False,
            ),
        )
        # mmengine takes a group that exists as it is.
        torch.distributed.init_process_group("gloo")


def check_data(cfg: Config, *splits: str) -> None:
    """Makes sure that the folders of the data are there, before anything is built.

    Args:
        cfg (Config): The config to run.
        splits (str): What will be read: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: If one is missing.
    """
    for split in splits:
        for node in _walk((cfg.get(f"{split}_dataloader") or {}).get("dataset", {})):
            root = node.get("data_root")
            if root and not isdir(root):
                raise FileNotFoundError(
                    f"data folder {root!r} does not exist; put the data there (the tools in "
                    "tools/data unpack and check it), or set data_root in the config"
                )


def _bind_data(cfg: Config) -> None:
    """Carries ``data_root`` and ``classes`` to loaders, evaluators and heads, where they are set.

    A value that is in use in one of these places already is not carried to the others: they were
    set on purpose.
    """
    loaders = {name: cfg.get(f"{name}_dataloader") for name in ("train", "val", "test")}
    datasets = [
        node
        for loader in loaders.values()
        if loader is not None
        for node in _walk(loader.dataset)
        if "ann_file" in node or "data_root" in node
    ]
    if "data_root" in cfg and all(node.get("data_root") != cfg.data_root for node in datasets):
        for node in datasets:
            node.data_root = cfg.data_root
    if "classes" in cfg:
        _bind_classes(cfg, datasets)
    for name in ("val", "test"):
        dataset = (loaders[name] or {}).get("dataset", {})
        evaluators = cfg.get(f"{name}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if "ann_file" in evaluator and "ann_file" in dataset:
                evaluator.ann_file = os.path.join(dataset.get("data_root", ""), dataset.ann_file)
            if "classes" in cfg and isinstance(evaluator.get("topk"), (list, tuple)):
                # mmpretrain has no top-5 accuracy of two classes.
                evaluator.topk = tuple(k for k in evaluator.topk if k <= len(cfg.classes))


def _bind_classes(cfg: Config, datasets: list[dict]) -> None:
    """Carries ``classes`` to data sets and heads."""
    # A single name of the command line is a string.
    cfg.classes = (cfg.classes,) if isinstance(cfg.classes, str) else tuple(cfg.classes)
    if all(tuple(node.get("metainfo", {}).get("classes", ())) != cfg.classes for node in datasets):
        for node in datasets:
            node.metainfo = {**node.get("metainfo", {}), "classes": cfg.classes}
    heads = [node for node in _walk(cfg.get("model") or {}) if "num_classes" in node]
    if all(node.num_classes != len(cfg.classes) for node in heads):
        for node in heads:
            node.num_classes = len(cfg.classes)


def _walk(node: dict) -> Iterator[dict]:
    """Gives every dict inside a config, from the outside in."""
    yield node
    for value in node.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                yield from _walk(item)
