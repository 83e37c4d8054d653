// A whole terminal for a command that shows something live: keys are read one by one, and the screen is restored at the end.
import type { Buffer } from "node:buffer";

export interface FullScreen {
  readonly columns: number;
  readonly rows: number;
  /** Replaces the content. Each line must fit into the columns, and contain no control characters but those of {@link STYLES}. */
  draw(lines: readonly string[]): void;
  /** Called with each key: a character, or `up`, `down`, `pageup`, `pagedown`, `enter`, `escape`, `backspace` or `ctrl-c`. */
  onKey(handle: (key: string) => void): void;
  /** Called when the size has changed. */
  onResize(handle: () => void): void;
  /** Restores the terminal. */
  close(): void;
}

/** Sequences that {@link FullScreen.draw} may contain (ECMA-48). */
export const STYLES = { bold: "\x1b[1m", dim: "\x1b[2m", inverse: "\x1b[7m", red: "\x1b[31m", reset: "\x1b[0m" } as const;

/** Access of a screen to the process. */
export interface TerminalStreams {
  readonly stdin: NodeJS.ReadStream;
  readonly stdout: NodeJS.WriteStream;
}

const KEYS: Readonly<Record<string, string>> = {
  "\x1b[A": "up",
  "\x1b[B": "down",
  "\x1bOA": "up",
  "\x1bOB": "down",
  "\x1b[5~": "pageup",
  "\x1b[6~": "pagedown",
  "\r": "enter",
  "\n": "enter",
  "\x1b": "escape",
  "\x7f": "backspace",
  "\b": "backspace",
  "\x03": "ctrl-c",
};

// the alternate screen, and no cursor
const [ENTER, LEAVE] = ["\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"];
const [HOME, CLEAR_LINE, CLEAR_REST] = ["\x1b[H", "\x1b[K", "\x1b[J"];
const NEW_LINE = "\r\n";

/** @throws {Error} if standard input or output is no terminal */
export function openFullScreen({ stdin, stdout }: TerminalStreams): FullScreen {
  if (!stdin.isTTY || !stdout.isTTY) throw new Error("Cannot show anything live: standard input and output are not a terminal");
  let [handleKey, handleResize]: [(key: string) => void, () => void] = [() => {}, () => {}];
  const onData = (data: Buffer) => parseKeys(data.toString("utf8")).forEach((key) => handleKey(key));
  const onResize = () => handleResize();
  stdin.setRawMode(true);
  stdin.on("data", onData);
  stdin.resume();
  stdout.on("resize", onResize);
  stdout.write(ENTER);
  return {
    get columns() {
      return stdout.columns || 80;
    },
    get rows() {
      return stdout.rows || 24;
    },
    draw: (lines) => void stdout.write(`${HOME}${lines.map((line) => `${line}${STYLES.reset}${CLEAR_LINE}`).join(NEW_LINE)}${CLEAR_REST}`),
    onKey: (handle) => handleKey = handle,
    onResize: (handle) => handleResize = handle,
    close() {
      stdin.off("data", onData);
      stdout.off("resize", onResize);
      stdin.setRawMode(false);
      stdin.pause();
      stdout.write(LEAVE);
    },
  };
}

/** Splits a terminal's input into keys: pasted text has several. */
export function parseKeys(text: string): string[] {
  const keys: string[] = [];
  for (let rest = text; rest !== "";) {
    // deno-lint-ignore no-control-regex -- sequences of keys begin with ESC
    const [sequence] = /^\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Z])?/.exec(rest) ?? [];
    const taken = sequence ?? String.fromCodePoint(rest.codePointAt(0)!);
    rest = rest.slice(taken.length);
    const key = KEYS[taken] ?? (sequence === undefined && taken >= " " ? taken : undefined);
    if (key !== undefined) keys.push(key);
  }
  return keys;
}
