// The totals of forwards on a terminal, below the lines about them, drawn again and again.
import type { Screen, Terminal } from "../shared/cli/command.ts";
import { type ForwardState, LineMonitor } from "./forward_monitor.ts";
import { destinationOf } from "./forwards.ts";

/** Time in milliseconds between two views. */
const INTERVAL_MS = 1_000;
/** Forwards that are shown. */
const MAX_LINES = 20;

export class LiveMonitor extends LineMonitor {
  #states: readonly ForwardState[] = [];
  /** Bytes of each forward in the view before. */
  #before: readonly number[] = [];
  #lines: readonly string[] = [];
  #timer?: ReturnType<typeof setInterval>;

  constructor(terminal: Pick<Terminal, "write" | "report">, private readonly screen: Screen) {
    super(terminal, true);
  }

  override listening(states: readonly ForwardState[]): void {
    super.listening(states);
    this.#states = states;
    this.#before = states.map(() => 0);
    this.#update();
    this.#timer = setInterval(() => this.#update(), INTERVAL_MS);
  }

  override report(line: string): void {
    this.#erase();
    super.report(line);
    this.#draw();
  }

  override close(): void {
    clearInterval(this.#timer);
    super.close();
  }

  #update(): void {
    this.#erase();
    const totals = this.#states.map((state) => state.bytes()).map(({ sent, received }) => sent + received);
    const rates = totals.map((total, i) => (total - this.#before[i]!) * 1_000 / INTERVAL_MS);
    this.#before = totals;
    this.#lines = formatStates(this.#states, rates, this.screen.columns());
    this.#draw();
  }

  #draw(): void {
    this.screen.write(this.#lines.map((line) => `${line}\n`).join(""));
  }

  #erase(): void {
    if (this.#lines.length > 0) this.screen.write(`\x1b[${this.#lines.length}A\x1b[J`);
  }
}

/** A line for each forward, no longer than `columns`. */
export function formatStates(states: readonly ForwardState[], rates: readonly number[], columns: number): string[] {
  const shown = states.slice(0, MAX_LINES);
  const width = (texts: string[]) => Math.max(...texts.map(({ length }) => length));
  const [addresses, destinations] = [width(shown.map(({ address }) => address)), width(shown.map(({ forward }) => destinationOf(forward)))];
  const lines = shown.map((state, i) => {
    const { address, forward, open, errors } = state;
    const { sent, received } = state.bytes();
    return [
      address.padEnd(addresses),
      destinationOf(forward).padEnd(destinations),
      `${open} open`.padStart(7),
      `${formatBytes(rates[i]!)}/s`.padStart(10),
      `${errors} failed`.padStart(8),
      `${formatBytes(received)} in`.padStart(11),
      `${formatBytes(sent)} out`.padStart(12),
    ].join("  ");
  });
  if (states.length > shown.length) lines.push(`and ${states.length - shown.length} more`);
  return lines.map((line) => line.slice(0, columns));
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Three digits and a unit. */
export function formatBytes(bytes: number): string {
  let unit = 0;
  while (bytes >= 999.5 && unit < UNITS.length - 1) {
    bytes /= 1_024;
    unit++;
  }
  return `${unit === 0 ? Math.round(bytes) : bytes.toPrecision(3)} ${UNITS[unit]}`;
}
