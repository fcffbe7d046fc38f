"""What people look at."""

from .comparison import Network, compare, evaluate

__all__ = ["Network", "compare", "evaluate"]
