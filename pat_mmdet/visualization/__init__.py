"""Pages and pictures of results."""

from .comparison import Network, compare, evaluate

__all__ = ["Network", "compare", "evaluate"]
