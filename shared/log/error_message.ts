// The message of a thrown value, for log lines and reports.

/** `message` of an `Error`, and the text of any other value. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
