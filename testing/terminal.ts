// A terminal for subcommands, which keeps what they say.
import assert from "node:assert/strict";
import type { Terminal } from "../shared/cli/command.ts";

/** What a command has written, and how it is run. */
export interface FakeTerminal extends Terminal {
  readonly out: () => string;
  readonly reports: string[];
}

/**
 * @param input standard input
 * @param answers to questions, in their order; without them there is no terminal to ask on
 */
export function fakeTerminal(
  { input = "", answers, env = {}, columns, executable }: {
    input?: string;
    answers?: readonly string[];
    env?: Record<string, string>;
    columns?: number;
    executable?: string;
  } = {},
): FakeTerminal {
  let text = "";
  const reports: string[] = [];
  const left = [...answers ?? []];
  return {
    out: () => text,
    reports,
    write: (part) => void (text += part),
    report: (line) => void reports.push(line),
    read: () => Promise.resolve(input),
    prompt: answers && ((question) => {
      reports.push(question);
      return Promise.resolve(left.shift() ?? "");
    }),
    columns,
    executable,
    env,
    openFullScreen: () => assert.fail("It takes no screen"),
    stopped: () => new Promise(() => {}),
  };
}
