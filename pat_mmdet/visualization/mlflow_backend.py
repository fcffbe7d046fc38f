"""Logging to MLflow."""

from __future__ import annotations

import os
from typing import Any

from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend


@VISBACKENDS.register_module()
class EnvMLflowVisBackend(MLflowVisBackend):
    """An ``MLflowVisBackend`` that logs to ``MLFLOW_TRACKING_URI``, else to ``mlflow.db``.

    MMEngine's own takes the URI, which may hold a password, from the config, and so into its dumps
    and checkpoints; its default, plain files in the work dir, is refused by newer versions of
    MLflow.

    Args:
        *args: Arguments of ``MLflowVisBackend``.
        **kwargs: Arguments of ``MLflowVisBackend``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        super().__init__(*args, **{"tracking_uri": uri, **kwargs})
