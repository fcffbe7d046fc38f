"""Check the config of a run before its first step."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.utils.config import check_config
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.run_check import notes


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

    def before_train(self, runner: Runner) -> None:
        """Warn of what has no effect, and check the size of a method's memory.

        Raises:
            ConfigError: If it has not one place for each training image.
        """
        for note in notes(runner.cfg):
            runner.logger.warning(note)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        num_data = getattr(getattr(model, "distill", None), "num_data", None)
        dataset = runner.train_dataloader.dataset
        while hasattr(dataset, "dataset"):  # wrappers, whose indices are those of what they wrap
            dataset = dataset.dataset
        if num_data is not None and num_data != len(dataset):
            raise ConfigError(
                f"model.method.num_data={num_data} but there are {len(dataset)} training images; "
                "set it to their number"
            )
