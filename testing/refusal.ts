// The error of a configuration that must be refused.
import assert from "node:assert/strict";
import { ConfigError } from "../shared/config/option.ts";

/** Returns the message of the {@link ConfigError} that `act` throws. Fails if it throws another error or none. */
export function refusal(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.message;
  }
  throw new Error("it was taken");
}
