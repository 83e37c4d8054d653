// The options of command lines in deploy/, without starting the services.
import assert from "node:assert/strict";
import { SERVICES } from "../services.ts";
import { readCommandLine, type Service as ServiceCommand } from "../shared/cli/command.ts";

/** Commands, which are never started. */
const commands = Object.entries(SERVICES).map(([name, options]): ServiceCommand => ({
  name,
  description: "A service.",
  options,
  check: () => Promise.reject(new Error("not to be called")),
  start: () => Promise.reject(new Error("not to be started")),
}));

/** The values of a command line: `proxy`, `--…`. Kubernetes has put the pod's address into it. */
export function valuesOf(args: readonly string[]): Record<string, Record<string, unknown>> {
  const executable = { root: { name: "reverse-http", description: "All.", commands }, version: "1.2.3", family: SERVICES };
  const task = readCommandLine(executable, { args: args.map((arg) => arg.replace("$(POD_IP)", "192.0.2.1")), env: {}, home: undefined });
  assert.equal(task.do, "run");
  return (task as Extract<typeof task, { do: "run" | "check" }>).resolved.values as ReturnType<typeof valuesOf>;
}

/** Milliseconds from the signal to the end of the last tunnel, at most. */
export function drainMs(args: readonly string[]): number {
  const { delay = 0, timeout } = valuesOf(args).drain as { delay?: number; timeout: number };
  return delay + timeout;
}
