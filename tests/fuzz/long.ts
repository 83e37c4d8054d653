// Long runs of all fuzzers: `deno task fuzz`. `--only=heads,properties,proxy,agent,rust` selects some, `--heads=N` sets the number of heads
// (default 10 million), `--minutes=N` the time for each of the others (default 10), `--seed=N` repeats a run.
import fc from "fast-check";
import process from "node:process";
import { FuzzedFront, heads } from "./heads.ts";
import { AttackedProxy } from "./hostile_agents.ts";
import { AttackingProxies } from "./hostile_proxies.ts";
import { makeProperties } from "./properties.ts";
import { fuzzRust } from "./rust.ts";
import { agentScript, proxyScript } from "./scripts.ts";

const BATCH = 100;
const RUNS = 1_000;

function option(name: string): string | undefined {
  return process.argv.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
}

function number(name: string, fallback: number): number {
  const given = option(name);
  if (given === undefined) return fallback;
  if (!/^[0-9]{1,15}$/.test(given)) throw new Error(`Cannot use --${name}: ${JSON.stringify(given)} is not a number`);
  return Number(given);
}

const total = number("heads", 10_000_000);
const minutes = number("minutes", 10);
const first = number("seed", Math.floor(Math.random() * 2 ** 31));
const seedOf = (round: number) => (first + round) % 2 ** 31;

async function fuzzHeads(): Promise<void> {
  const front = new FuzzedFront();
  const batches = fc.array(heads, { minLength: BATCH, maxLength: BATCH });
  const started = performance.now();
  for (let done = 0, round = 0; done < total; done += BATCH * RUNS, round++) {
    await fc.assert(fc.asyncProperty(batches, (batch) => front.check(batch)), { seed: seedOf(round), numRuns: RUNS });
    const { tunnels, forwarded, refused } = front.counts;
    const seconds = ((performance.now() - started) / 1000).toFixed(0);
    console.log(`${tunnels + forwarded + refused} heads in ${seconds} s: ${tunnels} tunnels, ${forwarded} forwarded, ${refused} refused`);
  }
  await front.close();
}

/** Numbered rounds until the time is over. */
async function rounds(round: (n: number) => Promise<string>): Promise<void> {
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1_000;
  for (let n = 0; seconds() < minutes * 60; n++) console.log(`${await round(n)}, after ${seconds().toFixed(0)} s`);
}

async function fuzzProperties(): Promise<void> {
  const properties = Object.entries(await makeProperties());
  await rounds(async (n) => {
    for (const [what, property] of properties) {
      try {
        await fc.assert(property, { seed: seedOf(n), numRuns: 2_000 });
      } catch (cause) {
        throw new Error(`It does not hold that ${what}`, { cause });
      }
    }
    return `${properties.length} properties hold for ${(n + 1) * 2_000} inputs each`;
  });
}

/** Each round starts new processes, so that leaks are detected at its end. */
async function fuzzProxy(): Promise<void> {
  const batches = fc.array(agentScript, { minLength: 16, maxLength: 16 });
  await rounds(async (n) => {
    await using proxy = await AttackedProxy.start();
    await fc.assert(fc.asyncProperty(batches, (batch) => proxy.check(batch)), { seed: seedOf(n), numRuns: 100, endOnFailure: true });
    await proxy.settle();
    return `round ${n + 1}: hostile agents ${JSON.stringify(proxy.counts)}`;
  });
}

async function fuzzAgent(): Promise<void> {
  await rounds(async (n) => {
    await using proxies = await AttackingProxies.start();
    const batches = fc.array(proxyScript(proxies.authority), { minLength: 48, maxLength: 48 });
    await fc.assert(fc.asyncProperty(batches, (batch) => proxies.check(batch)), { seed: seedOf(n), numRuns: 5, endOnFailure: true });
    return `round ${n + 1}: hostile proxies ${JSON.stringify(proxies.counts)}`;
  });
}

function fuzzNative(): void {
  if (!fuzzRust(minutes * 60, first)) throw new Error("The native engine does not hold: see what libFuzzer says above");
}

const all = { heads: fuzzHeads, properties: fuzzProperties, proxy: fuzzProxy, agent: fuzzAgent, rust: fuzzNative };
const wanted = option("only")?.split(",") ?? Object.keys(all);
for (const name of wanted) {
  if (!Object.hasOwn(all, name)) throw new Error(`Cannot use --only: ${JSON.stringify(name)} is not one of ${Object.keys(all).join(", ")}`);
}
console.log(`seed ${first}`);
for (const name of wanted as (keyof typeof all)[]) {
  console.log(`--- ${name}`);
  await all[name]();
}
