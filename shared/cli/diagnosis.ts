// Shared parts of the commands `doctor …`: flags, output, and checks that do not depend on the role. Imports no service.
import { X509Certificate } from "node:crypto";
import { decodeJwt } from "jose";
import { isIP } from "node:net";
import { splitHostPort } from "../address/host_port.ts";
import { showTime, timeOf } from "../auth/claim_time.ts";
import type { Role } from "../auth/token.ts";
import { BUILD } from "../build.ts";
import { ConfigError, defineOptions, flagOf } from "../config/option.ts";
import { readText } from "../files/read.ts";
import { messageOf } from "../log/error_message.ts";
import { NetError } from "../net/errors.ts";
import type { Net } from "../net/net.ts";
import { openStore, type StoreOptions } from "../store/options.ts";
import { VERSION } from "../version.ts";
import { CommandFailure, type Terminal } from "./command.ts";
import { type Finding, formatFindings } from "./findings.ts";

export const diagnosisOptions = defineOptions({
  "json": { kind: "boolean", description: "Print JSON instead of a table." },
});

/**
 * Prints the findings.
 * @throws {CommandFailure} if a check has failed
 */
export function report(findings: readonly Finding[], { json }: { json: boolean }, { write }: Pick<Terminal, "write">): void {
  const failed = findings.filter(({ result }) => result === "failed").length;
  const summary = failed === 0 ? "Nothing is wrong." : `${failed} of ${findings.length} checks failed.`;
  write(json ? `${JSON.stringify({ ok: failed === 0, findings }, null, 2)}\n` : formatFindings(findings, summary));
  if (failed > 0) throw new CommandFailure(1, ""); // the report says it
}

export function describeVersion(): Finding {
  return { check: "version", target: "this program", result: "ok", details: `reverse-http/${VERSION}, commit ${BUILD.commit}` };
}

/**
 * Runs `read`, which checks options and files, and adds a check with the result.
 * @returns its result; `undefined` if it has failed
 */
export async function checkConfiguration<T>(findings: Finding[], read: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof ConfigError || error instanceof NetError)) throw error;
    // messages end with what to do, after the last semicolon
    const [, details = error.message, remedy = "correct the option or the file that it names"] = /^(.*); ([^;]*)$/.exec(error.message) ??
      [];
    findings.push({ check: "configuration", target: "options and files", result: "failed", details, remedy });
    return undefined;
  }
}

const SET_CLOCK = "set the clock of this machine, for example by NTP";
/** Difference of clocks in milliseconds that tokens of this project tolerate. */
const TOLERANCE_MS = 5_000;

/** The contents of a token: role, agent, and validity by the clock of this machine. Only the proxy can check its signature. */
export function checkToken(text: string, { role, agentId }: { role: Role; agentId?: string }, now: number): Finding {
  const common = { check: "token", target: agentId ?? "" };
  const fail = (details: string, remedy: string): Finding => ({ ...common, result: "failed", details, remedy });
  let claims;
  try {
    claims = decodeJwt(text);
  } catch {
    return { ...common, result: "note", details: "not checked: it is no JWT" };
  }
  const { exp, nbf, iat = nbf, jti } = claims;
  const of = claims.agent_id ?? claims.agents;
  if (claims.role !== undefined && claims.role !== role) {
    const remedy = `create a token for this role: reverse-http invite${
      role === "client" ? " --client" : ""
    }, or auth jwt token --role=${role}`;
    return fail(`it is for the role ${JSON.stringify(claims.role)}, and is used by ${role === "agent" ? "an agent" : "a client"}`, remedy);
  }
  const clock = `the clock of this machine is at ${new Date(now).toISOString()}`;
  const begins = [nbf, iat].find((time) => (timeOf(time) ?? -Infinity) > now + TOLERANCE_MS);
  if (begins !== undefined) return fail(`it is not valid before ${showTime(begins)}; ${clock}`, SET_CLOCK);
  if ((timeOf(exp) ?? Infinity) <= now) {
    return fail(
      `it expired at ${showTime(exp)}; ${clock}`,
      `create a new token; if it should be valid now, ${SET_CLOCK}`,
    );
  }
  if (agentId !== undefined && typeof of === "string" && of !== agentId) {
    return fail(
      `it is for the agent ${JSON.stringify(of)}, not for ${JSON.stringify(agentId)}`,
      "use --agent-id of the token, or another token",
    );
  }
  const until = exp === undefined ? "does not expire" : `expires ${showTime(exp)}`;
  return {
    ...common,
    result: "ok",
    details: `role ${claims.role ?? "none"}, agent ${JSON.stringify(of) ?? "none"}, jti ${jti ?? "none"}, ${until}`,
  };
}

/** Difference in milliseconds between two machines that is not explained by the network. */
const MAX_SKEW_MS = 30_000;

/** Compares the clock of this machine with that of another. */
export function checkClock(target: string, theirs: number, now: number): Finding {
  const seconds = Math.round((now - theirs) / 1000);
  const common = { check: "clock", target };
  if (Math.abs(now - theirs) <= MAX_SKEW_MS) return { ...common, result: "ok", details: `within ${Math.abs(seconds)} s of the proxy's` };
  const details = `this machine is ${Math.abs(seconds)} s ${seconds > 0 ? "ahead of" : "behind"} the proxy, at ${
    new Date(now).toISOString()
  }`;
  return {
    ...common,
    result: "failed",
    details,
    remedy: "set the clock of the machine that is wrong, for example by NTP: tokens and certificates expire by it",
  };
}

/** Time in milliseconds for a name, and for a connection. */
const NAME_TIMEOUT_MS = 5_000;
const CONNECT_TIMEOUT_MS = 4_000;

/** Resolves the host of `address`; an IP address has nothing to check. */
export async function checkName(net: Net, address: string, option: string): Promise<Finding | undefined> {
  const { host } = splitHostPort(address);
  if (isIP(host.replace(/%.*/, "")) !== 0) return undefined;
  const common = { check: "name", target: host };
  try {
    const addresses = await net.resolve(host, { timeoutMs: NAME_TIMEOUT_MS, isConfigured: true });
    return { ...common, result: "ok", details: [...new Set(addresses)].slice(0, 8).join(", ") };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    const remedy = error.code === "name-timed-out"
      ? "allow this machine to reach its name servers, or use an address"
      : `correct the name in ${flagOf(option)}, or add it to the name server`;
    return { ...common, result: "failed", details: error.message, remedy, code: error.code };
  }
}

/** Connects to `address` over TCP. */
export async function checkTcp(
  net: Net,
  address: string,
  remedies: { readonly refused: string; readonly silent: string },
): Promise<Finding> {
  const common = { check: "TCP", target: address };
  const start = performance.now();
  try {
    (await net.connectTcp({ ...splitHostPort(address), timeoutMs: CONNECT_TIMEOUT_MS })).close();
    return { ...common, result: "ok", details: `connected in ${Math.ceil(performance.now() - start)} ms` };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    const { code, message } = error;
    return { ...common, result: "failed", details: message, remedy: code === "refused" ? remedies.refused : remedies.silent, code };
  }
}

/** Time in milliseconds before the end of a certificate from which it is reported. */
const SOON_MS = 7 * 86_400_000;

/** Whether the first certificate of a file is valid now. A file that cannot be read is reported with the configuration. */
export async function checkCertificate(option: string, file: string | undefined, now: number): Promise<Finding[]> {
  if (file === undefined) return [];
  const common = { check: "certificate", target: file };
  let certificate;
  try {
    certificate = new X509Certificate(await readText(file, 1 << 20));
  } catch {
    return [];
  }
  const [begins, ends] = [Date.parse(certificate.validFrom), Date.parse(certificate.validTo)];
  const details = `valid from ${new Date(begins).toISOString()} to ${new Date(ends).toISOString()}`;
  if (begins > now) return [{ ...common, result: "failed", details, remedy: `${SET_CLOCK}, or wait until the certificate is valid` }];
  if (ends <= now) {
    return [{ ...common, result: "failed", details, remedy: `renew ${flagOf(option)}; if it should be valid now, ${SET_CLOCK}` }];
  }
  return [{ ...common, result: ends - now < SOON_MS ? "note" : "ok", details }];
}

/** Lifetime of entries, which a diagnosis does not write. */
const STORE_TTL_MS = 60_000;

/** Asks the store's servers. */
export async function checkStore(options: StoreOptions): Promise<Finding[]> {
  if (options.type === "none") return [];
  const states = new Map<string, string | undefined>();
  const store = await openStore(options, STORE_TTL_MS, {
    onServer: ({ name, up, reason }) => void states.set(name, up ? undefined : reason ?? "no answer"),
  });
  try {
    await store!.lookup("doctor");
  } catch (error) {
    if (states.size === 0) states.set(options.type, messageOf(error));
  } finally {
    store!.close();
  }
  if (states.size === 0) states.set(options.type, undefined);
  const remedy = `start the server, let this machine reach it, and compare --store.${options.type}.* with its address and password`;
  return [...states].map(([target, reason]): Finding => {
    if (reason === undefined) return { check: "store", target, result: "ok", details: `${options.type} answers` };
    return { check: "store", target, result: "failed", details: reason, remedy };
  });
}
