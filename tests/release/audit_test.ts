// Which licences may be inside: SPDX expressions as packages have them.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { isAllowed } from "../../tools/audit.ts";

describe("licences", () => {
  it("are allowed where one side of each OR and every side of each AND is", () => {
    for (const expression of ["MIT", "MIT OR GPL-3.0-only", "(MIT OR Apache-2.0) AND Unicode-3.0", "ISC AND (GPL-2.0-only OR ISC)"]) {
      assert.ok(isAllowed(expression), expression);
    }
  });

  it("are refused where they are none, others, or not to be read", () => {
    for (const expression of ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "UNLICENSED", "(AGPL-3.0-only OR SSPL-1.0) AND MIT", "MIT MIT"]) {
      assert.ok(!isAllowed(expression), expression);
    }
  });
});
