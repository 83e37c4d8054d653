// Options that more than one executable has.
import { LOG_FORMATS, LOG_LEVELS } from "../log.ts";
import { createAllowList } from "../allow_list.ts";
import { defineOptions } from "./option.ts";

export const logOptions = defineOptions({
  "log.format": {
    kind: "string",
    default: "text",
    choices: LOG_FORMATS,
    env: "LOG_FORMAT",
    description: "Log lines for people (text) or machines (json).",
  },
  "log.level": {
    kind: "string",
    default: "info",
    choices: LOG_LEVELS,
    env: "LOG_LEVEL",
    description: "The least important messages that are logged.",
  },
});

/** For `check` of a list of allow-list patterns. */
export function checkPatterns(patterns: string[]): string | undefined {
  try {
    createAllowList(patterns);
    return undefined;
  } catch (error) {
    return (error as RangeError).message;
  }
}
