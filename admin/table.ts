// Tables for terminals. Text may come from peers, so control characters are escaped.

/** Shows control and format characters as \x1b or \u{202e}, so that a terminal does not obey them and nothing is hidden. */
export function escapeText(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Mn}\p{Me}]|\\/gu, (character) => {
    const code = character.codePointAt(0)!;
    if (character === "\\") return "\\\\";
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
  });
}

/** Ranges of characters that take two columns (UAX #11). */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}|[\u{20000}-\u{3fffd}]/gu;

/** Columns that an escaped text takes. */
export function widthOf(text: string): number {
  return [...text].length + (text.match(WIDE)?.length ?? 0);
}

/** Shortens an escaped text to `width` columns. */
export function fit(text: string, width: number): string {
  if (widthOf(text) <= width) return text;
  let short = "";
  let used = 0;
  for (const character of text) {
    used += widthOf(character);
    if (used > width - 1) break;
    short += character;
  }
  return width > 0 ? `${short}…` : "";
}

/** Fills an escaped text with spaces. */
export function pad(text: string, width: number, align: "left" | "right" = "left"): string {
  const space = " ".repeat(Math.max(0, width - widthOf(text)));
  return align === "left" ? text + space : space + text;
}

/** A column: its title, its text of an item, and how it is aligned. */
export interface Column<T> {
  readonly title: string;
  readonly text: (item: T) => string | undefined;
  /** Default `left`. */
  readonly align?: "left" | "right";
  /** Longest text in columns. Default 40. */
  readonly max?: number;
}

const MAX_WIDTH = 40;

/** The lines of a table, the first with the titles. Columns without any text are left out. */
export function tableLines<T>(items: readonly T[], columns: readonly Column<T>[]): string[] {
  const cells = columns.map(({ title, text, align, max = MAX_WIDTH }) => {
    const texts = items.map((item) => fit(escapeText(text(item) ?? ""), max));
    return { title, align, texts, width: Math.max(widthOf(title), ...texts.map(widthOf)), isEmpty: texts.every((text) => text === "") };
  }).filter(({ isEmpty }) => !isEmpty || items.length === 0);
  const line = (of: (cell: (typeof cells)[number]) => string) =>
    cells.map((cell) => pad(of(cell), cell.width, cell.align)).join("  ").trimEnd();
  return [line(({ title }) => title), ...items.map((_, i) => line(({ texts }) => texts[i]!))];
}

/** The lines of {@link tableLines} as one text. */
export function formatTable<T>(items: readonly T[], columns: readonly Column<T>[]): string {
  return tableLines(items, columns).map((line) => `${line}\n`).join("");
}
