"""Run exported networks with numpy, OpenCV and onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

# Relative, so that this folder also serves on its own.
from .preprocessing import apply_pipeline, read_image

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Detections(NamedTuple):
    """Objects of an image, by falling score.

    Attributes:
        boxes (np.ndarray): (N, 4), float32, as x1, y1, x2, y2 in pixels of the image.
        scores (np.ndarray): (N,), float32.
        labels (np.ndarray): Indices into the classes (N,), int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class OnnxModel:
    """A network that ``pat-mmdet export`` has written.

    Args:
        file (str | Path | bytes): Path of the file, or its content.
        num_threads (int): Threads that a prediction uses; 0 for one per core.
        providers (Sequence[str], optional): Execution providers of onnxruntime, by preference; by
            default CUDA's where it is installed, and the CPU's.

    Attributes:
        classes (list[str]): Names of the classes.
        pipeline (list[dict]): Steps from an image to what the network takes.
        session (onnxruntime.InferenceSession): The network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be loaded, was not written by the export, or is for another task.
    """

    task: str

    def __init__(
        self,
        file: str | Path | bytes,
        num_threads: int = 0,
        providers: Sequence[str] | None = None,
    ) -> None:
        name = "the content" if isinstance(file, bytes) else repr(str(file))
        if not isinstance(file, bytes):
            file = os.fspath(file)
            if not os.path.isfile(file):
                raise FileNotFoundError(f"{name} does not exist; check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        if providers is None:
            installed = onnxruntime.get_available_providers()
            providers = [provider for provider in _PROVIDERS if provider in installed]
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:
            # Its classes are private, and have no base but Exception.
            line = str(error).strip().partition("\n")[0]
            raise ValueError(f"{name} cannot be loaded by onnxruntime: {line}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "task" not in metadata:
            raise ValueError(f"{name} was not written by 'pat-mmdet export'")
        if metadata["task"] != self.task:
            raise ValueError(f"{name} is for {metadata['task']}, not for {self.task}")
        self.classes: list[str] = json.loads(metadata["classes"])
        self.pipeline: list[dict] = json.loads(metadata["test_pipeline"])

    def infer(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Run the network.

        Args:
            pixels (np.ndarray): (1, 3, H, W), float32, BGR, 0 to 255, of a resized image.

        Returns:
            list[np.ndarray]: What the network gives.
        """
        return self.session.run(None, {"image": pixels})

    def _load(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Read an image if it is a path.

        Raises:
            ValueError: If an array is no image.
        """
        if not isinstance(image, np.ndarray):
            return read_image(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"an image is an array (height, width, 3) of uint8 in BGR, as cv2.imread gives it, "
                f"not {image.shape} of {image.dtype}"
            )
        return image

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, 3), uint8, BGR, to what :meth:`infer` takes."""
        resized = apply_pipeline(image, self.pipeline)
        return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], dtype=np.float32)


class OnnxDetector(OnnxModel):
    """A detector in ONNX.

    See :class:`OnnxModel` for the arguments.

    Example:
        >>> detector = OnnxDetector("student.onnx")
        >>> for box, score, label in zip(*detector("photo.jpg")):
        ...     print(detector.classes[label], score, box)
    """

    task = "detection"

    def __call__(self, image: np.ndarray | str | Path) -> Detections:
        """Detect the objects of an image.

        Args:
            image (np.ndarray | str | Path): Path, or pixels (H, W, 3), uint8, BGR.

        Returns:
            Detections: Boxes in pixels of the image, scores and labels.

        Raises:
            FileNotFoundError: If there is no such image.
            ValueError: If it is no image.
        """
        image = self._load(image)
        pixels = self.preprocess(image)
        boxes, scores, labels = self.infer(pixels)
        # As MMDetection, by the factors of the rounded size.
        x, y = (image.shape[i] / pixels.shape[j] for i, j in ((1, 3), (0, 2)))
        return Detections(boxes * np.array([x, y, x, y], np.float32), scores, labels)


class OnnxClassifier(OnnxModel):
    """A classifier in ONNX.

    See :class:`OnnxModel` for the arguments.

    Example:
        >>> classifier = OnnxClassifier("student.onnx")
        >>> probabilities = classifier("photo.jpg")
        >>> print(classifier.classes[probabilities.argmax()])
    """

    task = "classification"

    def __call__(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Classify an image.

        Args:
            image (np.ndarray | str | Path): Path, or pixels (H, W, 3), uint8, BGR.

        Returns:
            np.ndarray: Probabilities of the classes (K,), float32.

        Raises:
            FileNotFoundError: If there is no such image.
            ValueError: If it is no image.
        """
        return self.infer(self.preprocess(self._load(image)))[0][0]
