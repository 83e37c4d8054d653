// A terminal's screen as SVG.

export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** Of a character, in pixels; the font is at most as wide. */
const [WIDTH, HEIGHT] = [7.3, 17];
const [BACKGROUND, FOREGROUND, DIM] = ["#0e131a", "#d7dee8", "#8592a3"];
const MARGIN = 12;

/** @param lines with sequences of STYLES, each of which applies to the rest of its line */
export function terminalPicture(lines: readonly string[], { columns, rows }: TerminalSize): string {
  const width = Math.ceil(columns * WIDTH) + 2 * MARGIN;
  const height = rows * HEIGHT + 2 * MARGIN;
  const drawn = lines.map((line, i) => drawLine(line, MARGIN + i * HEIGHT, columns));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
<rect width="${width}" height="${height}" rx="8" fill="${BACKGROUND}"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="12" fill="${FOREGROUND}">
${drawn.filter((line) => line !== "").join("\n")}
</g>
</svg>
`;
}

function drawLine(line: string, top: number, columns: number): string {
  // deno-lint-ignore no-control-regex -- the sequences of STYLES
  const text = line.replace(/\x1b\[\d+m/g, "");
  if (text.trim() === "") return "";
  const isInverse = line.includes("\x1b[7m");
  const fill = isInverse ? ` fill="${BACKGROUND}"` : line.startsWith("\x1b[2m") ? ` fill="${DIM}"` : "";
  const bar = isInverse
    ? `<rect x="${MARGIN}" y="${top}" width="${Math.ceil(columns * WIDTH)}" height="${HEIGHT}" fill="${FOREGROUND}"/>`
    : "";
  const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const length = Math.round(text.length * WIDTH * 10) / 10;
  return `${bar}<text x="${MARGIN}" y="${
    top + 13
  }" xml:space="preserve" textLength="${length}" lengthAdjust="spacing"${fill}>${escaped}</text>`;
}
