// Puts millions of mutated heads to the front: `deno task fuzz`, `--heads=N` for how many (default 10 million), `--seed=N` to repeat a run.
import fc from "fast-check";
import process from "node:process";
import { FuzzedFront, heads } from "./heads.ts";

const BATCH = 100;
const RUNS = 1_000;

function option(name: string, fallback: number): number {
  const given = process.argv.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
  if (given === undefined) return fallback;
  if (!/^[0-9]{1,15}$/.test(given)) throw new Error(`Cannot use --${name}: ${JSON.stringify(given)} is not a number`);
  return Number(given);
}

const total = option("heads", 10_000_000);
const seed = option("seed", Math.floor(Math.random() * 2 ** 31));
const front = new FuzzedFront();
const batches = fc.array(heads, { minLength: BATCH, maxLength: BATCH });
console.log(`seed ${seed}`);
const started = performance.now();
for (let done = 0, round = 0; done < total; done += BATCH * RUNS, round++) {
  await fc.assert(fc.asyncProperty(batches, (batch) => front.check(batch)), { seed: (seed + round) % 2 ** 31, numRuns: RUNS });
  const { tunnels, forwarded, refused } = front.counts;
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(`${tunnels + forwarded + refused} heads in ${seconds} s: ${tunnels} tunnels, ${forwarded} forwarded, ${refused} refused`);
}
await front.close();
