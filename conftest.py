"""Collect the code blocks of the documentation as tests."""

from helpers.documents import check_python, check_shell, clean_up, set_up
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", check_python), CodeBlockParser("bash", check_shell)],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    setup=set_up,
    teardown=clean_up,
).pytest()
