// A short run of the properties of `deno task fuzz`, with a fixed seed.
import fc from "fast-check";
import { describe, it } from "node:test";
import { makeProperties } from "./properties.ts";

const properties = await makeProperties();

describe("any input", () => {
  for (const [what, property] of Object.entries(properties)) {
    it(what, async () => await fc.assert(property, { seed: 9000, numRuns: 300 }));
  }
});
