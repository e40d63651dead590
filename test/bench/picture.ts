/** What pictures of benches have in common: SVG, in the reader's colours, light or dark. */
const STYLE = `
:root { --ground: #ffffff; --ink: #1f2328; --grid: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --grid: #30363d; }
}
.ground { fill: var(--ground); } text { fill: var(--ink); } .grid { stroke: var(--grid); }
`;

/**
 * @param style of its own
 * @param parts elements, as text
 */
export function picture(
  width: number,
  height: number,
  style: string,
  parts: readonly string[],
): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}"`,
    ' font-family="sans-serif" font-size="12">',
    `<style>${STYLE}${style}</style>`,
    `<rect width="${width}" height="${height}" class="ground"/>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}
