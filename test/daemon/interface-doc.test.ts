/**
 * Goal: docs/API.md has every request, every method and every function, and none that does not
 * exist. Method: its tables are compared with the routes, the client and the package.
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { type RouteOptions, routesOf } from '../../src/daemon/api-routes.ts';
import * as ubd from '../../src/index.ts';

const page = readFileSync(new URL('../../../docs/API.md', import.meta.url), 'utf8');

/** Of the table with this heading: the cells of one column. */
function cells(heading: string, column: number): string[] {
  const [, below] = page.split(`\n| ${heading} |`);
  const [table] = below!.split('\n\n');
  const rows = table!.split('\n').slice(2);
  return rows.map(row => row.split('|')[column + 1]!);
}

/** All that stands in backquotes. */
function quoted(texts: readonly string[]): string[] {
  return texts.flatMap(text => [...text.matchAll(/`(\w+)`/g)].map(([, name]) => name!)).sort();
}

t.test('every request is told, and none that is not there', async t => {
  const told = new Set<string>();
  for (const cell of cells('request', 0)) {
    const [, first, more] = /\/v1\/([a-z]+)(\/[\w]+)?/.exec(cell)!;
    for (const [method] of cell.matchAll(/GET|POST|PATCH|DELETE/g))
      told.add(`${method} ${first}${more === undefined ? '' : '/*'}`);
  }
  const there = Object.entries(routesOf({} as RouteOptions)).flatMap(([path, methods]) =>
    Object.keys(methods).map(method => `${method} ${path}`),
  );
  t.same([...told].sort(), there.sort());
});

t.test('every method of the client is told', async t => {
  const methods = Object.getOwnPropertyNames(ubd.Client.prototype);
  t.same(quoted(cells('of', 1)), methods.filter(name => name !== 'constructor').sort());
});

t.test('every function of the package is told', async t => {
  const functions = Object.keys(ubd).filter(
    name => !['Client', 'UbdError', 'connect'].includes(name),
  );
  t.same(quoted(cells('function', 0)), functions.sort());
});
