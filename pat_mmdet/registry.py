"""The registry of distillation methods."""

from mmengine.registry import Registry
from torch import nn

from pat_mmdet.structures import FeatureSpec

METHODS = Registry("method", scope="pat_mmdet", locations=["pat_mmdet.models.methods"])


def method_class(cfg: dict) -> type[nn.Module]:
    """Looks up the class that a method's config names.

    Raises:
        ValueError: If the name is unknown; the known ones are listed.
    """
    name = cfg.get("type")
    if name not in METHODS:
        known = ", ".join(sorted(METHODS.module_dict))
        raise ValueError(
            f"unknown distillation method {name!r}; known methods: {known}. "
            "Set model.method.type to one of them"
        )
    return METHODS.get(name)


def build_method(cfg: dict, student: FeatureSpec, teacher: FeatureSpec) -> nn.Module:
    """Builds a method for a pair of networks.

    Args:
        cfg (dict): ``type`` is a name in :data:`METHODS`, the rest are its arguments.
        student (FeatureSpec): Shapes of the student, from the dry run.
        teacher (FeatureSpec): Shapes of the teacher, from the dry run.

    Returns:
        nn.Module: The method, a :class:`pat_mmdet.models.methods.BaseMethod`.

    Raises:
        ValueError: If the name is unknown.
    """
    method_class(cfg)
    # The scope is named because the search would otherwise begin in mmdet's registries.
    shapes = dict(student=student, teacher=teacher)
    return METHODS.build({**cfg, **shapes, "_scope_": "pat_mmdet"})
