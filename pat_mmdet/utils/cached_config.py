"""A config whose formatted text is cached."""

from __future__ import annotations

from mmengine.config import Config


class CachedConfig(Config):
    """A ``Config`` that is formatted anew only after a change.

    mmengine formats the config by yapf four times when a training starts and at every checkpoint,
    about a second each time for a detector on COCO.
    """

    @classmethod
    def from_config(cls, cfg: Config) -> CachedConfig:
        """Return a config that shares the values of another one.

        Args:
            cfg (Config): The other config.

        Returns:
            CachedConfig: The config.
        """
        cached = cls()
        cached.__setstate__(cfg.__getstate__())
        return cached

    @property
    def pretty_text(self) -> str:
        """str: The config as formatted Python code."""
        content = repr(self.to_dict())
        # In __dict__, as `setattr` of a config sets one of its values.
        if self.__dict__.get("_formatted", ("", ""))[0] != content:
            self.__dict__["_formatted"] = (content, super().pretty_text)
        return self.__dict__["_formatted"][1]
