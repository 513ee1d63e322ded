"""HTML that nothing written into it can break: text is escaped, markup is a type of its own."""

import dataclasses
import html
import re
from collections.abc import Iterable, Sequence

MOST_ROWS = 60  # of a table that is seen whole; of more it scrolls
VOID = ('img', 'meta', 'br')
# Neither HTML nor UTF-8 has them: control characters, and bytes of file names that are no text.
UNPRINTABLE = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')


@dataclasses.dataclass(frozen=True)
class Html:
    """Markup, which stays as it is wherever it is put; anything else is text."""

    markup: str


Content = Html | str | int | float


def text(content: Content) -> str:
    """Returns markup as it is, and anything else escaped."""
    if isinstance(content, Html):
        return content.markup
    return html.escape(UNPRINTABLE.sub('\N{REPLACEMENT CHARACTER}', str(content)))


def join(parts: Iterable[Content], between: str = '') -> Html:
    """Puts contents one after another, with text between them."""
    return Html(text(between).join(text(part) for part in parts))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """Returns an element.

    Args:
        name: As `td`.
        *content: What is in it.
        **attributes: As `class_='wide'` or `data_value=3`, `_` standing for `-` and none at the end; True is an
            attribute without a value, None and False are none.
    """
    written = []
    for key, value in attributes.items():
        key = key.removesuffix('_').replace('_', '-')
        if value is True:
            written.append(f' {key}')
        elif value is not None and value is not False:
            written.append(f' {key}="{text(value)}"')
    start = f'<{name}{"".join(written)}>'
    return Html(start if name in VOID else f'{start}{join(content).markup}</{name}>')


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: What is shown.
        value: What rows are sorted by; None: by what is shown.
        kind: Its class, as `number`.
    """

    content: Content
    value: float | str | None = None
    kind: str | None = None


Row = Sequence[Content | Cell]


def table(
    titles: Sequence[Content],
    rows: Iterable[Row],
    *,
    sortable: bool = False,
    kind: str = '',
) -> Html:
    """Returns a table in a box of its own, within which it scrolls where it is wider than the page.

    Args:
        titles: Of the columns.
        rows: The first cell of each is its head.
        sortable: Whether a click on a title sorts.
        kind: Its class.
    """
    body = [[cell if isinstance(cell, Cell) else _cell(cell) for cell in row] for row in rows]
    columns = zip(titles, *body, strict=True)
    head = [
        tag(
            'th',
            tag('button', title, type='button') if sortable else title,
            scope='col',
            class_='number'
            if cells and all((cell.kind or '').startswith('number') for cell in cells)
            else None,
        )
        for title, *cells in columns
    ]
    lines = []
    for cells in body:
        names = ['th'] + ['td'] * (len(cells) - 1)
        lines.append(
            tag(
                'tr',
                *(
                    tag(
                        name,
                        cell.content,
                        class_=cell.kind,
                        data_value=cell.value,
                        scope='row' if name == 'th' else None,
                    )
                    for name, cell in zip(names, cells, strict=True)
                ),
            )
        )
    whole = tag(
        'table',
        tag('thead', tag('tr', *head)),
        tag('tbody', join(lines, '\n')),
        class_=' '.join(filter(None, (kind, 'sortable' if sortable else ''))) or None,
    )
    box = 'scroll tall' if len(body) > MOST_ROWS else 'scroll'
    return tag('div', whole, class_=box, tabindex=0)


def _cell(content: Content) -> Cell:
    number = isinstance(content, int | float) and not isinstance(content, bool)
    return Cell(
        f'{content:,}' if isinstance(content, int) and number else content, None, 'number' if number else None
    )


def details(summary: Content, *content: Content, kind: str | None = None) -> Html:
    """Returns what a click on its summary opens."""
    return tag('details', tag('summary', summary), *content, class_=kind)


def paragraph(*content: Content, kind: str | None = None) -> Html:
    """Returns a paragraph."""
    return tag('p', *content, class_=kind)
