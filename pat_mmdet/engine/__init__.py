"""Hooks and training loops."""
