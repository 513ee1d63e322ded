"""The page itself: what is around the sections, its style, its script, and the rules it sets the browser."""

import base64
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

from vivit_jax.report.markup import Content, Html, join, tag, text

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: its anchor, its title, a line on how to read it, and what is in it."""

    anchor: str
    title: str
    note: Content
    content: Sequence[Html]


def page(title: str, head: Sequence[Html], sections: Sequence[Section], foot: Content) -> str:
    """Returns a whole document that needs nothing else, and may load and run nothing else.

    Args:
        title: Of the window.
        head: What stands above the sections.
        sections: The sections, named in a table of contents.
        foot: What stands at the end.
    """
    contents = tag(
        'nav',
        tag('ol', *(tag('li', tag('a', each.title, href=f'#{each.anchor}')) for each in sections)),
        aria_label='Contents',
    )
    toggle = tag('button', 'Dark', type='button', id='theme', aria_label='Switch between light and dark')
    body = join(
        [
            tag('header', *head, toggle),
            tag('div', contents, tag('main', *map(_section, sections)), class_='columns'),
            tag('footer', tag('p', foot)),
        ],
        '\n',
    )
    markup, own = _own_styles(_own_names(body.markup))
    style = (HERE / 'style.css').read_text(encoding='utf-8') + own
    script = (HERE / 'script.js').read_text(encoding='utf-8')
    # Nothing may be loaded, and nothing may run but these two texts: names in the page are no danger even if a
    # mistake here let one through.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    start = join(
        [
            tag('meta', charset='utf-8'),
            tag('meta', http_equiv='Content-Security-Policy', content=policy),
            tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
            tag('meta', name='color-scheme', content='light dark'),
            tag('title', title),
            tag('style', Html(style)),
        ],
        '\n',
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{text(start)}\n</head>\n<body>\n{markup}\n'
        f'<script>{script}</script>\n</body>\n</html>\n'
    )


def _section(section: Section) -> Html:
    title = tag('h2', section.title, id=section.anchor)
    note = [tag('p', section.note, class_='note')] if section.note else []
    return tag('section', title, *note, *section.content, aria_labelledby=section.anchor)


def _own_names(markup: str) -> str:
    """Gives the parts of each chart names of their own: matplotlib names them alike in all."""
    charts = iter(range(markup.count('<svg') + 1))

    def rename(chart: re.Match[str]) -> str:
        number = next(charts)
        return re.sub(r'( id="|url\(#|href="#)', rf'\1c{number}-', chart[0])

    return re.sub(r'<svg class="chart".*?</svg>', rename, markup, flags=re.DOTALL)


def _own_styles(markup: str) -> tuple[str, str]:
    """Turns styles of single elements, which the policy forbids, into classes; returns the classes as well.

    Only charts have such: in text from outside a quotation mark is escaped.
    """
    names: dict[str, str] = {}

    def rename(style: re.Match[str]) -> str:
        return f' class="{names.setdefault(style[1], f"s{len(names)}")}"'

    changed = re.sub(r' style="([^"]*)"', rename, markup)
    return changed, ''.join(f'.{name} {{ {style} }}\n' for style, name in names.items())


def _digest(content: str) -> str:
    return f'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'
