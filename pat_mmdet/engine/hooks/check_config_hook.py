"""Check the config of a run before its first step."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.utils.config import check_config


@HOOKS.register_module()
class CheckConfigHook(Hook):
    """Refuse a config that plain MMEngine would run otherwise than the tools of this project.

    The tools put one ``data_root`` and one ``classes`` into every place; a plain Runner does not.
    With this hook it says so, instead of training on the data of a base config.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Runner) -> None:
        """Check the Runner's config.

        Raises:
            ConfigError: If the tools would have changed or refused it.
        """
        check_config(runner.cfg)
