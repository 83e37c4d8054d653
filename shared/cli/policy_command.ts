// The commands `policy …`: run a policy's own tests, and print its decisions with the reasons.
import { decodeJwt, type JWTPayload } from "jose";
import { formatDestination } from "../address/authority.ts";
import { createAllowList } from "../address/allow_list.ts";
import { showTime, timeOf } from "../auth/claim_time.ts";
import { createAgentList } from "../auth/agent_list.ts";
import { isToken } from "../auth/authenticator.ts";
import { personOf } from "../auth/oidc_token.ts";
import { MAX_TOKEN } from "../auth/token.ts";
import { policyOptions, providerOptions } from "../config/common_options.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../config/option.ts";
import { describeFileError, readText } from "../files/read.ts";
import { quantity } from "../log/quantity.ts";
import { MAX_POLICY, subjectsOf } from "../policy/policy.ts";
import { checkLabel, checkSubject, parseDestination, PolicyError, readPolicy } from "../policy/read.ts";
import { mismatches, type PolicyQuery, type Rule, type RuleSet } from "../policy/rules.ts";
import { CommandFailure, type Group, type Subcommand, type Terminal } from "./command.ts";

/** Options of the proxy that the commands use. */
const service = defineOptions({
  ...policyOptions,
  "auth.oidc.name-claim": providerOptions["auth.oidc.name-claim"],
  "auth.oidc.groups-claim": providerOptions["auth.oidc.groups-claim"],
});

const options = defineOptions({
  "as": {
    kind: "list",
    description:
      "Who asks: a token, or file:NAME with one, which is not verified; or subjects of the policy, as in --as=name:alice,group:ops. By default no subject.",
  },
  "agent": { kind: "string", description: "Id of the agent." },
  "labels": {
    kind: "list",
    description: "The agent's labels, name=value.",
    check: (labels) => problemOf(() => labels.forEach(checkLabel)),
  },
  "to": {
    kind: "string",
    description: "Destination, host:port, or udp:host:port. Without it, the policy's own tests are run.",
    check: (text) => problemOf(() => parseDestination(text)),
  },
  "at": {
    kind: "string",
    description: "Time, as in 2026-01-31T09:00:00Z; by default now.",
    check: (text) => Number.isNaN(Date.parse(text)) ? `${JSON.stringify(text)} is not a time` : undefined,
  },
});
type Values = ValuesOf<typeof service> & ValuesOf<typeof options>;

const testCommand: Subcommand<Values> = {
  name: "test",
  description: "Run the tests of a policy, or say whether it allows a tunnel, and by which rule. Exit code 1: it does not.",
  options,
  service,
  async run(values, { write }) {
    const { file, rules } = await openRules(values);
    if (values.to === undefined) return write(`${file}: ${quantity(rules.rules.length, "rule")}, all tests pass\n`);
    const { decision, refusal } = await decide(rules, values);
    const text = refusal ?? describe(file, decision.rule);
    if (refusal !== undefined || !decision.allowed) throw new CommandFailure(1, `denied: ${text}`);
    write(`allowed: ${text}\n`);
  },
};

const explainCommand: Subcommand<Values> = {
  name: "explain",
  description:
    "List the rules of a policy for a client, and what keeps each of them from applying. Exit code 0, whatever it decides: policy test checks.",
  options,
  service,
  async run(values, terminal) {
    const { file, rules } = await openRules(values);
    if (values.to === undefined) throw new ConfigError("Cannot explain: --to is required");
    const { query, at, decision, refusal } = await decide(rules, values);
    explain(file, rules, query, at, terminal);
    if (decision.allowed) { for (const rule of rules.limits(query, at)) terminal.write(`limited: ${describeLimit(file, rule)}\n`); }
    const { allowed, rule } = decision;
    terminal.write(refusal === undefined ? `${allowed ? "allowed" : "denied"}: ${describe(file, rule)}\n` : `denied: ${refusal}\n`);
  },
};

/** The command group `policy`. */
export const policyCommand: Group = {
  name: "policy",
  description: "Test the policy of a proxy, and explain its decisions.",
  commands: [testCommand as Subcommand, explainCommand as Subcommand],
};

async function openRules({ auth: { policyFile: file } }: Values): Promise<{ file: string; rules: RuleSet }> {
  if (file === undefined) throw new ConfigError("Cannot read a policy: --auth.policy-file is required");
  try {
    return { file, rules: await readPolicy(await readText(file, MAX_POLICY), Date.now()) };
  } catch (cause) {
    if (cause instanceof PolicyError) throw new CommandFailure(1, `${file}:${cause.line}: ${cause.problem}`, { cause });
    throw new ConfigError(`Cannot read --auth.policy-file ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
  }
}

/** The decision of the policy, or the refusal by the token's own limits. */
async function decide(rules: RuleSet, { as, agent, labels, to, at: text, auth: { oidc } }: Values) {
  if (agent === undefined) throw new ConfigError("Cannot decide: --agent is required");
  const at = text === undefined ? Date.now() : Date.parse(text);
  const { subjects, refusal } = await readSubjects(as, agent, to!, oidc, at);
  const query: PolicyQuery = { subjects, agentId: agent, labels, ...parseDestination(to!) };
  return { query, at, decision: rules.decide(query, at), refusal };
}

async function readSubjects(
  as: readonly string[],
  agent: string,
  to: string,
  claims: Values["auth"]["oidc"],
  at: number,
): Promise<{ subjects: string[]; refusal?: string }> {
  const [first = "", ...more] = as;
  if (!first.startsWith("file:") && !isToken(first)) {
    const problem = problemOf(() => as.forEach(checkSubject));
    if (problem !== undefined) {
      throw new ConfigError(`Cannot use --as: ${isLoggableSubject(first) ? problem : "it is no token and no subject"}`);
    }
    return { subjects: [...as] };
  }
  if (more.length > 0) throw new ConfigError("Cannot use --as: a token stands alone");
  const payload = decodeToken(first.startsWith("file:") ? await readToken(first.slice(5)) : first);
  const deny = (why: string) => new ConfigError(`Cannot use --as: the token ${why}`);
  const { role, sub: subject, name, jti: tokenId } = payload;
  // a token of auth jwt token has a role
  const person = role === undefined ? personOf(payload, claims, deny) : { subject, name: typeof name === "string" ? name : undefined };
  return { subjects: subjectsOf({ ...person, tokenId }), refusal: refusalOf(payload, agent, to, at) };
}

/** Whether an error message may quote it: a mistyped token must not be shown. */
function isLoggableSubject(text: string): boolean {
  return text.length <= 64;
}

async function readToken(file: string): Promise<string> {
  try {
    return (await readText(file, MAX_TOKEN)).trim();
  } catch (cause) {
    throw new ConfigError(`Cannot read --as file:${file}: ${describeFileError(cause)}`, { cause });
  }
}

function decodeToken(text: string): JWTPayload {
  try {
    return decodeJwt(text);
  } catch (cause) {
    throw new ConfigError("Cannot use --as: it is not a JWT", { cause });
  }
}

/** Why a token is refused, whatever the policy says. */
function refusalOf({ exp, agent_id: id, agents, allow }: JWTPayload, agent: string, to: string, at: number): string | undefined {
  if ((timeOf(exp) ?? Infinity) <= at) return `the token expired at ${showTime(exp)}`;
  if (typeof id === "string" && id !== agent) return `the token is for the agent ${JSON.stringify(id)}`;
  if (Array.isArray(agents) && !createAgentList(agents).allows(agent)) return `the token is for the agents ${agents.join(", ")}`;
  const { destination, network } = parseDestination(to);
  if (!Array.isArray(allow) || createAllowList(allow).allows(destination, network)) return undefined;
  return `${formatDestination(destination, network)} is not on the allow-list of the token`;
}

function explain(file: string, { rules, minuteOf }: RuleSet, query: PolicyQuery, at: number, { write }: Terminal): void {
  let others = 0;
  for (const rule of rules) {
    const missing = mismatches(rule, query, minuteOf(at));
    if (missing.includes("subjects")) others++;
    else {write(
        `${file}:${rule.line}: ${rule.effect} ${rule.name}: ${missing.length === 0 ? "applies" : `not for these ${missing.join(", ")}`}\n`,
      );}
  }
  if (others > 0) write(`${quantity(others, "rule is", "rules are")} for other subjects than ${query.subjects.join(", ") || "nobody"}\n`);
}

function describe(file: string, rule: Rule | undefined): string {
  return rule === undefined ? `no rule of ${file} allows it` : `rule ${JSON.stringify(rule.name)} (${file}:${rule.line})`;
}

function describeLimit(file: string, rule: Rule): string {
  const { bytesPerSecond, tunnels, isShared } = rule.limit!;
  const what = [bytesPerSecond > 0 ? `${quantity(bytesPerSecond, "byte")} per second` : [], tunnels > 0 ? quantity(tunnels, "tunnel") : []]
    .flat().join(
      " and ",
    );
  return `${what} for ${isShared ? "all its clients together" : "each client"}: ${describe(file, rule)}`;
}

function problemOf(check: () => void): string | undefined {
  try {
    check();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}
