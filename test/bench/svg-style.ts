/** Colours of the pictures that benches draw: the reader's, light or dark. */
export const PICTURE_STYLE: string = `
:root { --ground: #ffffff; --ink: #1f2328; --grid: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --grid: #30363d; }
}
.ground { fill: var(--ground); } text { fill: var(--ink); } .grid { stroke: var(--grid); }
`;
