"""The command line: one module a command, each with a ``main``.

The modules import torch, and what imports it, inside functions: ``--help`` does not wait for them.
"""
