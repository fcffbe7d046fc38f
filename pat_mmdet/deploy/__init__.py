"""Deployment: networks in ONNX, and a runtime for them.

What is imported here needs numpy, OpenCV and onnxruntime alone. The export is in
:mod:`pat_mmdet.deploy.onnx_export`, which needs torch and MMDetection.
"""

from .runtime import Detections, OnnxClassifier, OnnxDetector

__all__ = ["Detections", "OnnxClassifier", "OnnxDetector"]
