// A short run, from a fixed seed, of what `deno task fuzz` looks at for longer.
import fc from "fast-check";
import { describe, it } from "node:test";
import { makeProperties } from "./properties.ts";

const properties = await makeProperties();

describe("whatever comes", () => {
  for (const [what, property] of Object.entries(properties)) {
    it(what, async () => await fc.assert(property, { seed: 9000, numRuns: 300 }));
  }
});
