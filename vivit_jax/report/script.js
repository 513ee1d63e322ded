'use strict';

// The theme: the system's, until the button is pressed.
const root = document.documentElement;
const button = document.getElementById('theme');
const system = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);
const label = () => { button.textContent = isDark() ? 'Light' : 'Dark'; };
button.addEventListener('click', () => {
  root.dataset.theme = isDark() ? 'light' : 'dark';
  label();
});
system.addEventListener('change', label);
label();

// Tables: a click on a title sorts by its column, another one the other way round. Numbers begin with the largest.
const worth = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text.replaceAll(',', ''));
  return text === '' || Number.isNaN(number) ? text : number;
};
const compare = (one, other) =>
  typeof one === 'number' && typeof other === 'number' ? one - other : String(one).localeCompare(String(other));
const sort = (table, title) => {
  const column = title.cellIndex;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, place) => [worth(row, column), place, row]);
  const before = title.getAttribute('aria-sort');
  const numeric = rows.length > 0 && rows.every(([value]) => typeof value === 'number');
  const order = (before ?? (numeric ? 'ascending' : 'descending')) === 'ascending' ? 'descending' : 'ascending';
  const sign = order === 'ascending' ? 1 : -1;
  rows.sort((one, other) => sign * compare(one[0], other[0]) || one[1] - other[1]);
  for (const each of table.tHead.rows[0].cells) each.removeAttribute('aria-sort');
  title.setAttribute('aria-sort', order);
  body.append(...rows.map(([, , row]) => row));
};
for (const table of document.querySelectorAll('table.sortable')) {
  for (const title of table.tHead.rows[0].cells) {
    title.querySelector('button').addEventListener('click', () => sort(table, title));
  }
}

// On paper nothing can be opened.
addEventListener('beforeprint', () => {
  for (const each of document.querySelectorAll('details:not(.numbers)')) each.open = true;
});
