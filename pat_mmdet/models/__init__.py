"""Distillers, methods and what they are made of.

``losses`` and ``layers`` need torch alone, so nothing is imported here.
"""
