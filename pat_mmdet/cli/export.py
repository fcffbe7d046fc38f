"""Write a trained student for use without this package: weights and config, or ONNX.

The ending of OUT decides. ``.pth`` has weights with a config inside and beside them, which plain
MMDetection or mmpretrain runs; those of a timm student also load with
``timm.create_model(..., checkpoint_path=...)``. ``.safetensors`` holds tensors alone; MMDetection's
tools read ``.pth``. ``.onnx`` has pre- and post-processing inside, for onnxruntime, OpenVINO and
TensorRT. It is compared with PyTorch before it is written.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, Registry, init_default_scope

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils import (
    is_distiller,
    load_config,
    student_model,
    write_atomic,
)
from pat_mmdet.utils.config_text import parse_config_text
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.nested import walk

if TYPE_CHECKING:
    from torch import nn

# Settings of one run on one machine.
_OF_THE_RUN = ("work_dir", "load_from", "resume", "launcher", "experiment_name", "cfg")
# What MMDetection's tools read besides the arguments of the Runner.
_OF_THE_TOOLS = ("auto_scale_lr", "custom_imports", "tta_model", "tta_pipeline")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config the student was trained with")
    parser.add_argument("checkpoint", help="checkpoint of the training")
    parser.add_argument("out", type=Path, help=f"file to write ({', '.join(_WRITERS)})")
    parser.add_argument(
        "--image",
        help="with .onnx, image to compare the predictions on; by default one of the config's test "
        "images, or a portrait where there are none",
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.image and args.out.suffix != ".onnx":
        parser.error("--image is for .onnx: other formats are not compared")
    return args


class Student(NamedTuple):
    """A trained student.

    Attributes:
        cfg (Config): Config that it was trained with.
        model (nn.Module): The network.
        dataset_meta (dict): Names and colours of its classes, as far as they are known.
    """

    cfg: Config
    model: nn.Module
    dataset_meta: dict[str, Any]


def load_student(
    config: str | os.PathLike | None, checkpoint: str, options: dict | None = None
) -> Student:
    """Build a student and load its weights.

    Args:
        config (str | os.PathLike, optional): Path of the config, of a pair or of the student alone;
            by default the one in the checkpoint.
        checkpoint (str): Checkpoint of the training, or weights.
        options (dict, optional): Values by dotted key, as ``--cfg-options`` gives them.

    Returns:
        Student: The student.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If one of them cannot be read, they do not fit together, or there is no config.
    """
    from pat_mmdet.utils import load_weights, read_checkpoint

    meta = read_checkpoint(checkpoint).get("meta")
    cfg = choose_config(config, checkpoint, meta, options)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    model = MODELS.build(student_model(cfg))
    load_weights(model, checkpoint, allow_unused=("distill.",))
    return Student(cfg, model, find_dataset_meta(cfg, meta))


def choose_config(
    config: str | os.PathLike | None, checkpoint: str, meta: Any, options: dict | None
) -> Config:
    """Read the config of a checkpoint.

    Args:
        config (str | os.PathLike, optional): Its path; by default the one inside is taken.
        checkpoint (str): The checkpoint, for messages.
        meta (Any): Its ``meta``.
        options (dict, optional): Values by dotted key, as ``--cfg-options`` gives them.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it cannot be read, or there is none inside.
    """
    from pat_mmdet.utils.data_folder import pop_data, spread_folder

    if config is not None:
        return load_config(config, options)
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f"checkpoint {checkpoint!r} has no config inside; give it before the checkpoint on the "
            "command line (pat-mmdet infer CONFIG CHECKPOINT INPUT), as config=... in Python"
        )
    cfg = parse_config_text(text)
    cfg.pop("data", None)  # only a user names folders to be read
    options = dict(options or {})
    folder = pop_data(cfg, options)
    cfg.merge_from_dict(options)
    if folder is not None:
        spread_folder(cfg, folder)
    return cfg


def find_dataset_meta(cfg: Config, meta: Any) -> dict[str, Any]:
    """Return the names of the classes, and what goes with them.

    Args:
        cfg (Config): Config of the network.
        meta (Any): ``meta`` of its checkpoint. The names of the training go before those of the
            config.

    Returns:
        dict[str, Any]: Has ``classes`` if any are known.
    """
    dataset = cfg.get("test_dataloader", {}).get("dataset", {})
    places = (
        meta.get("dataset_meta") if isinstance(meta, dict) else None,
        dataset.get("metainfo"),
        dict(classes=cfg.get("classes")),
        getattr(_find_class(dataset.get("type")), "METAINFO", None),
    )
    for place in places:
        if isinstance(place, dict) and place.get("classes") and _is_plain(place["classes"]):
            return place
    return {}


def plain_config(cfg: Config) -> Config:
    """Turn a config of this project into one of plain MMDetection.

    Only what MMDetection's tools read is left: the model is the student alone, without pretrained
    weights; classes of this project are replaced by those that they extend; hooks of this project
    and of the package that the method comes from go, as do imports that nothing needs any more and
    visualizer backends other than local files. Absolute paths become relative ones under ``data/``.

    Args:
        cfg (Config): Config of a distiller, or of a student alone.

    Returns:
        Config: The student's config.
    """
    from mmengine.runner import Runner

    from pat_mmdet.registry import METHODS

    method = METHODS.get(cfg.model.method.type) if is_distiller(cfg) else None
    arguments = set(inspect.signature(Runner.__init__).parameters) - set(_OF_THE_RUN)
    plain = {
        key: value
        for key, value in cfg.to_dict().items()
        if key in (*arguments, *_OF_THE_TOOLS) and value is not None
    }
    plain["model"] = student_model(cfg).to_dict()
    plain["custom_hooks"] = [
        hook
        for hook in plain.get("custom_hooks", [])
        if _package(_plain_class(hook["type"])) not in {"pat_mmdet", _package(method)}
    ]
    plain["default_hooks"] = {
        name: hook
        for name, hook in plain.get("default_hooks", {}).items()
        if hook is None or _package(_plain_class(hook["type"])) != "pat_mmdet"
    }
    if plain.get("visualizer", {}).get("vis_backends"):
        plain["visualizer"]["vis_backends"] = [dict(type="LocalVisBackend")]
    imports = plain.pop("custom_imports", {}).get("imports", [])
    roots = {node["data_root"] for _, node in walk(plain) if node.get("data_root")}
    plain = _plain(plain, roots)
    used = {_plain_class(node["type"]) for _, node in walk(plain) if "type" in node}
    needed = [module for module in imports if _is_needed(module, used, method)]
    if needed:
        plain["custom_imports"] = dict(imports=needed)
    return Config(plain)


def _is_needed(module: str, used: set[type], method: type | None) -> bool:
    """Return True if a module of ``custom_imports`` registers classes that are used.

    It may import them from its own package, but the module that defines the method alone is not
    needed.
    """

    def defines(cls: type | None) -> bool:
        return f"{getattr(cls, '__module__', '')}.".startswith(f"{module}.")

    package = module.split(".")[0]
    return any(map(defines, used)) or (
        package in map(_package, used) and package != "pat_mmdet" and not defines(method)
    )


def _find_class(name: Any) -> type | None:
    """Look up a type of a config in all registries, in the default scope first."""
    if not isinstance(name, str):
        return name
    scope = DefaultScope.get_current_instance().scope_name
    for root in vars(registry).values():
        if isinstance(root, Registry):
            found = root.children.get(scope, root).get(name)
            if found is not None:
                return found
    return None


def _package(cls: type | None) -> str:
    """Return the name of the package that defines a class; empty for an unknown class."""
    return getattr(cls, "__module__", "").split(".")[0]


def _plain_class(name: Any) -> type | None:
    """Return the first base of a registered class that is not of this project."""
    cls = _find_class(name)
    if _package(cls) != "pat_mmdet":
        return cls
    base = next(base for base in cls.__mro__ if _package(base) != "pat_mmdet")
    # A mere interface cannot take the place of the class. In the registries, a class of this
    # project may have taken the place of its base.
    registered = _find_class(base.__name__)
    return base if registered is not None and issubclass(registered, base) else cls


def _plain(value: Any, roots: set[str]) -> Any:
    """Replace classes of this project, pretrained weights and absolute paths at any depth.

    Args:
        value (Any): Part of a config.
        roots (set[str]): Folders of the data sets.

    Returns:
        Any: The part without them.
    """
    if isinstance(value, dict):
        node = {
            key: _plain(item, roots)
            for key, item in value.items()
            if not _loads_pretrained(key, item)
        }
        if _package(_find_class(node.get("type"))) == "pat_mmdet":
            node["type"] = _plain_class(node["type"]).__name__
        if node.get("type") == "TimmClassifier" and "model_name" in node:
            # Only there, as detection does without timm.
            from pat_mmdet.models.backbones.timm_swin import plain_settings

            node.update(plain_settings(node["model_name"]))
        return node
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, roots) for item in value)
    if isinstance(value, str) and os.path.isabs(value):
        root = next((root for root in roots if value.startswith(root)), value)
        return os.path.join("data", os.path.relpath(value, os.path.dirname(root.rstrip("/"))))
    return value


def _loads_pretrained(key: str, value: Any) -> bool:
    """Return True for a setting that loads pretrained weights; the student's replace them."""
    if key == "init_cfg":
        return any(node.get("type") == "Pretrained" for _, node in walk(value))
    return key == "pretrained" and bool(value)


def _is_plain(value: Any) -> bool:
    """Return True for text, numbers, and lists of them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float))


def save_weights(state: dict, dataset_meta: dict, config: str, out: Path) -> None:
    """Write weights, as tensors and plain data.

    Args:
        state (dict): Weights by name.
        dataset_meta (dict): Names and colours of the classes; objects in it are left out.
        config (str): Text of the plain config.
        out (Path): A ``.pth`` or ``.safetensors`` file; the latter has no config.
    """
    import torch

    # What MMDetection's inferencer reads.
    plain = {
        key: dataset_meta[key] for key in ("classes", "palette") if _is_plain(dataset_meta.get(key))
    }
    if out.suffix == ".safetensors":
        from safetensors.torch import save

        # Tensors that share memory, as tied weights do, are written one by one.
        tensors = {key: value.clone().contiguous() for key, value in state.items()}
        write_atomic(out, save(tensors, metadata=dict(dataset_meta=json.dumps(plain))))
        return
    content = io.BytesIO()
    torch.save(dict(meta=dict(cfg=config, dataset_meta=plain), state_dict=state), content)
    write_atomic(out, content.getbuffer())


def _write_weights(student: Student, out: Path, image: str | None) -> None:
    """Write weights, and the plain config beside them; no image is needed."""
    config = plain_config(student.cfg)
    save_weights(student.model.state_dict(), student.dataset_meta, config.pretty_text, out)
    config.dump(out.with_suffix(".py"))
    print(f"weights: {out}\nconfig:  {out.with_suffix('.py')}")


def _write_onnx(student: Student, out: Path, image: str | None) -> None:
    """Write ONNX if it agrees with PyTorch on an image.

    Raises:
        ValueError: If it does not.
    """
    try:
        from pat_mmdet.deploy.comparison import compare
        from pat_mmdet.deploy.onnx_export import export_onnx, find_image
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the export to ONNX needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None

    classes = list(map(str, student.dataset_meta.get("classes", ())))
    image = image or find_image(student.cfg)
    content = export_onnx(student.model.eval(), student.cfg, classes)
    print("difference between ONNX and PyTorch:")
    differences = []
    for difference in compare(content, student.model, student.cfg, image):
        print(f"  {difference}")
        differences.append(difference)
    if not all(difference.is_small for difference in differences):
        raise ValueError(
            f"{out} is not written: it would not predict what PyTorch predicts, see above"
        )
    write_atomic(out, content)
    if not any(difference.num_predictions for difference in differences):
        print(
            "Nothing was detected, so no boxes were compared: give an image with objects, --image"
        )
    print(f"ONNX:    {out} ({len(content) / 2**20:.1f} MiB)")


_WRITERS = {".pth": _write_weights, ".safetensors": _write_weights, ".onnx": _write_onnx}


def export(
    config: str | os.PathLike | None,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    cfg_options: dict[str, Any] | None = None,
    image: str | None = None,
) -> None:
    """Write a trained student for use without this package.

    Args:
        config (str | os.PathLike, optional): Config it was trained with; with None, the one in the
            checkpoint.
        checkpoint (str | os.PathLike): Checkpoint of the training.
        out (str | os.PathLike): File to write: ``.pth`` and ``.safetensors`` have the weights, with
            the plain config beside them; ``.onnx`` is compared with PyTorch first.
        cfg_options (dict, optional): Values by dotted key.
        image (str, optional): Image to compare the predictions of ONNX and PyTorch on; by default
            one of the config's test images.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If they do not fit together, the ending is not known, or ONNX does not agree
            with PyTorch.
    """
    out = Path(out)
    if out.suffix not in _WRITERS:
        raise ValueError(f"{str(out)!r} must end with {' or '.join(_WRITERS)}")
    student = load_student(config, os.fspath(checkpoint), cfg_options)
    _WRITERS[out.suffix](student, out, image)


def main() -> None:
    """Export as the command line says."""
    args = parse_args()

    with clear_errors(args.traceback):
        export(args.config, args.checkpoint, args.out, args.cfg_options, args.image)


if __name__ == "__main__":
    main()
