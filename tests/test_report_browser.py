"""The report as a browser shows it: nothing goes wrong or out, it fits a phone, sorts, and can be read."""

import json
import pathlib
import urllib.parse

import pytest
from browser import Browser, find_chromium
from workdirs import NASTY, write_workdir

from vivit_jax import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None, reason='no Chromium: apt-get install chromium (or $CHROMIUM)'
    ),
]

# The contrast (WCAG 2.2) of every element with text of its own against what is behind it: the smallest, and whose.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = [99, ''];
  let seen = 0;
  for (const element of document.querySelectorAll('body, body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest('script, title, [aria-hidden]') || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const behind = [];
    for (let part = element; part; part = part.parentElement) behind.unshift(getComputedStyle(part).backgroundColor);
    const ground = ['white', ...behind];
    const colour = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [one, other] = [light(over(ground)), light(over([...ground, colour]))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    seen += 1;
    if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 200)];
  }
  return [...least, seen];
})()"""
WIDEST = """[...document.querySelectorAll('body *')]
  .filter((element) => !element.parentElement.closest('.scroll, svg'))
  .map((element) => [Math.ceil(element.getBoundingClientRect().right), element.outerHTML.slice(0, 150)])
  .filter(([right]) => right > innerWidth)"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(find_chromium(), tmp_path_factory.mktemp('browser'))
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    long = [f'{"a_class_with_a_long_name_and_no_space_in_it_" * 2}{k}' for k in range(11)]
    cases = {
        'one': {'classes': [f'{NASTY} {k}' for k in range(4)]},
        'heads': {'sizes': (3, 40), 'heads': ('noun', 'verb'), 'examples': 300},
        'labels': {'sizes': (6,), 'loss': 'sigmoid'},
        'long': {'sizes': (11,), 'classes': long, 'names': [f'{"no/space/" * 30}{k}' for k in range(60)]},
    }
    found = {}
    for name, values in cases.items():
        write_workdir(folder / name, **values)
        (folder / name / 'bad_files.csv').write_text(
            f'split,name,cause,found\ntrain,{"x" * 200}.mp4,no frames,at the start\n'
        )
        found[name] = report.write(folder / name).as_uri()
    write_workdir(folder / 'wider', seed=1, model__width=96)
    found['several'] = report.write([folder / 'wider', folder / 'one'], folder / 'two.html').as_uri()
    return found


CASES = ('one', 'heads', 'labels', 'long', 'several')


@pytest.mark.parametrize('name', CASES)
def test_nothing_goes_wrong_or_out_and_all_fits_a_phone(browser, pages, name):
    for width, theme in ((1280, 'light'), (390, 'dark'), (320, 'light')):
        browser.show(pages[name], width=width, theme=theme)
        assert browser.run('document.documentElement.scrollWidth') <= width
        assert browser.run(WIDEST) == []
        assert browser.messages == []
        assert [address for address in browser.requests if not address.startswith('data:')] == [pages[name]]


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_all_text_can_be_read(browser, pages, name, theme):
    browser.show(pages[name], theme=theme)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    contrast, where, seen = browser.run(CONTRAST)
    assert contrast >= 4.5, where
    assert seen > 100
    paper = browser.run('getComputedStyle(document.body).backgroundColor')
    assert paper == {'light': 'rgb(253, 253, 251)', 'dark': 'rgb(20, 23, 26)'}[theme]


def test_charts_have_the_colours_of_the_theme(browser, pages):
    strokes = []
    for theme in ('light', 'dark'):
        browser.show(pages['one'], theme=theme)
        line = "getComputedStyle(document.querySelector('[id$=line-0] path')).stroke"
        series = "getComputedStyle(document.querySelector('.key.series-0')).color"
        strokes.append(browser.run(line))
        assert strokes[-1] == browser.run(series)
    assert strokes[0] != strokes[1]


def test_the_button_changes_the_theme(browser, pages):
    paper = 'getComputedStyle(document.body).backgroundColor'
    for theme, other in (('light', 'Dark'), ('dark', 'Light')):
        browser.show(pages['one'], theme=theme)
        before = browser.run(paper)
        assert browser.run('document.getElementById("theme").textContent') == other
        browser.run('document.getElementById("theme").click()')
        assert browser.run(paper) != before
        browser.run('document.getElementById("theme").click()')
        assert browser.run(paper) == before
    assert browser.messages == []


def rows(browser, table):
    """The cells of a table, line by line, and how its columns are sorted."""
    cells = f'[...{table}.rows].map((row) => [...row.cells].map((cell) => cell.textContent))'
    orders = f"[...{table}.rows[0].cells].map((cell) => cell.getAttribute('aria-sort'))"
    return browser.run(cells), browser.run(orders)


def test_tables_are_sorted_by_a_click_and_by_a_key(browser, pages):
    browser.show(pages['heads'])
    table = "[...document.querySelectorAll('table.sortable')].find((each) => each.rows.length === 41)"
    (titles, *before), orders = rows(browser, table)
    assert titles[:3] == ['class', 'examples', 'accuracy']
    assert orders == [None] * len(titles)
    title = f'{table}.rows[0].cells[1].firstChild'
    browser.run(f'{title}.click()')
    (_, *down), orders = rows(browser, table)
    assert orders[:3] == [None, 'descending', None]
    assert down == sorted(before, key=lambda row: -int(row[1]))
    browser.run(f'{title}.focus()')
    browser.press('Enter')
    (_, *up), orders = rows(browser, table)
    assert orders[:3] == [None, 'ascending', None]
    assert [row[1] for row in up] == [row[1] for row in down[::-1]]
    browser.run(f'{table}.rows[0].cells[0].firstChild.click()')
    (_, *by_name), orders = rows(browser, table)
    assert orders[:3] == ['ascending', None, None]
    assert by_name == sorted(before)
    browser.run(f'{table}.rows[0].cells[2].firstChild.click()')
    (_, *by_share), _ = rows(browser, table)
    shares = [float(row[2].split()[0]) for row in by_share]
    assert shares == sorted(shares, reverse=True)
    assert browser.messages == []


def test_names_are_shown_and_not_run(browser, pages):
    browser.show(pages['one'])
    assert browser.run('document.scripts.length') == 1
    assert NASTY in browser.run("document.querySelector('main').textContent")


def test_what_the_policy_forbids_is_noticed(browser, pages, tmp_path):
    """The other tests can fail: a page with a foreign script and picture is told of."""
    text = pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(pages['one']).path)).read_text()
    broken = tmp_path / 'broken.html'
    broken.write_text(
        text.replace('</main>', '<script>1</script><img src="http://localhost:9/a.png"></main>')
    )
    browser.show(broken.as_uri())
    told = json.dumps(browser.messages)
    assert 'script-src' in told
    assert 'img-src' in told


def test_there_is_something_to_see_on_paper(browser, pages):
    browser.show(pages['one'], theme='dark')
    browser.ask('Emulation.setEmulatedMedia', media='print')
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == 'none'
    assert browser.run('getComputedStyle(document.body).backgroundColor') == 'rgb(253, 253, 251)'
    assert len(browser.ask('Page.printToPDF')['data']) > 10_000
    browser.ask('Emulation.setEmulatedMedia', media='')
