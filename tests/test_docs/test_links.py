"""Links between the pages, and from them to files of the repository."""

import re
from urllib.parse import unquote

import pytest
from helpers.tools import ROOT
from markdown_it import MarkdownIt

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def tokens(path):
    """The tokens of a page, those inside of paragraphs too."""
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        yield from (token, *(token.children or ()))


def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    parsed = list(tokens(path))
    headings = [after for token, after in zip(parsed, parsed[1:]) if token.type == "heading_open"]
    plain = [re.sub(r"[^\w\- ]", "", heading.content.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [token.attrGet("href") or token.attrGet("src") for token in tokens(page)]
    for link in filter(None, links):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"
