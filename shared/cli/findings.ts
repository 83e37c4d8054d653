// What diagnoses have found, and the table that shows it. Makes no checks.
import type { NetErrorCode } from "../net/errors.ts";
import { printable } from "../net/printable.ts";

/** The result of a check. `note`: nothing is wrong, or it does not matter. */
export interface Finding {
  /** The subject of the check. */
  readonly check: string;
  /** A name, an address, or a file. */
  readonly target: string;
  readonly result: "ok" | "failed" | "note";
  readonly details: string;
  /** What to do about a failure. */
  readonly remedy?: string;
  /** Code of the network's error. */
  readonly code?: NetErrorCode;
}

/** Limit on the length of a cell: reasons and responses of peers are in some. */
const MAX_CELL = 1_024;

/** Formats a line for each finding, with the remedy of a failure below it, and the summary. */
export function formatFindings(findings: readonly Finding[], summary: string): string {
  const rows = findings.map(({ check, target, result, details }) => [check, target, result, details].map(sanitize));
  const table = [["CHECK", "TARGET", "RESULT", "DETAILS"], ...rows];
  const widths = [0, 1, 2].map((column) => Math.max(...table.map((row) => row[column]!.length)));
  const lines = table.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd());
  const remedies = [undefined, ...findings.map(({ remedy }) => remedy)];
  const indent = " ".repeat(widths[0]! + 2);
  const all = lines.flatMap((line, i) => remedies[i] === undefined ? [line] : [line, `${indent}Remedy: ${sanitize(remedies[i])}`]);
  return `${all.join("\n")}\n\n${summary}\n`;
}

/** A terminal obeys control characters. */
function sanitize(text: string): string {
  return printable(text, MAX_CELL);
}
