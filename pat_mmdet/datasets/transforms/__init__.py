"""Transforms of data pipelines."""

from .loading import LoadImageOrSkip

__all__ = ["LoadImageOrSkip"]
