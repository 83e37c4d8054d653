// The command `doctor agent`: the checks of `--check-link`, and those of the machine and the token.
import { type CreateNet, withNet } from "../shared/cli/network.ts";
import type { Subcommand } from "../shared/cli/command.ts";
import { checkConfiguration, checkToken, describeVersion, diagnosisOptions, report } from "../shared/cli/diagnosis.ts";
import type { Finding } from "../shared/cli/findings.ts";
import type { ValuesOf } from "../shared/config/option.ts";
import type { Net } from "../shared/net/net.ts";
import { checkAgentOptions } from "./agent.ts";
import { type Credentials, requestCredentials } from "./credentials.ts";
import { IssuerError } from "../shared/auth/issuer_client.ts";
import { checkLink } from "./check_link.ts";
import { expandJoin } from "./join.ts";
import { LearnedPins } from "./learned_pins.ts";
import { silentLogger } from "../shared/log/logger.ts";
import { type AgentOptions, agentOptions } from "./options.ts";
import type { Environment } from "./outbound_proxy.ts";

/** Dependencies of the diagnosis. */
export interface AgentDiagnosis {
  readonly net: Net;
  readonly environment?: Environment;
  /** The directory for state, if no option names one. */
  readonly stateDirectory?: string;
  /** Returns the time in milliseconds since 1970. Default: that of the machine. */
  readonly now?: () => number;
}

export function agentDoctor(
  createNet: CreateNet,
  deps: Pick<AgentDiagnosis, "environment" | "stateDirectory"> = {},
): Subcommand<AgentOptions & ValuesOf<typeof diagnosisOptions>> {
  return {
    name: "agent",
    description: "Check what an agent with these options needs to connect to its proxies.",
    options: diagnosisOptions,
    service: agentOptions,
    expansion: { option: "join", expand: expandJoin },
    run: async (options, terminal) =>
      report(await withNet(createNet, (net) => diagnoseAgent(options, { net, ...deps })), options, terminal),
  };
}

/** Reports problems as checks, and does not reject for them. */
export async function diagnoseAgent(
  options: AgentOptions,
  { net, environment, stateDirectory, now = Date.now }: AgentDiagnosis,
): Promise<Finding[]> {
  const findings: Finding[] = [describeVersion()];
  const access = await checkConfiguration(findings, () => checkAgentOptions(options, { net, environment }));
  if (access === undefined) return findings;
  const credentials = access.credentials ?? await checkIssuer(findings, options);
  if (credentials === undefined) return findings;
  if (options.auth.type === "jwt") {
    const token = new TextDecoder().decode(credentials.bytes);
    findings.push(checkToken(token, { role: "agent", agentId: credentials.agentId }, now()));
  }
  const pins = await LearnedPins.open(options.stateDir || stateDirectory, silentLogger);
  const { findings: ofLink } = await checkLink({ net, options, ...access, pins, credentials, now });
  return [...findings, ...ofLink.flatMap((finding) => finding.check === QUIC ? [...udpOf(finding, ofLink), finding] : [finding])];
}

/** Gets a token from the issuer. */
async function checkIssuer(findings: Finding[], { auth }: AgentOptions): Promise<Credentials | undefined> {
  const common = { check: "issuer", target: auth.oidc.issuer! };
  try {
    const credentials = await requestCredentials(auth);
    findings.push({ ...common, result: "ok", details: `gives a token for the agent ${credentials.agentId}` });
    return credentials;
  } catch (error) {
    if (!(error instanceof IssuerError)) throw error;
    const remedy = error.kind === "unreachable"
      ? "correct --auth.oidc.issuer, or let firewalls allow HTTPS to it"
      : "correct --auth.oidc.client-id and its secret or key, or permit the client credentials grant for it there";
    findings.push({ ...common, result: "failed", details: error.message, remedy });
    return undefined;
  }
}

const QUIC = "QUIC (UDP)";

/** Whether UDP passes, is dropped or is rejected, as the attempt with QUIC has shown. */
function udpOf({ target, result, code, details }: Finding, all: readonly Finding[]): Finding[] {
  const common = { check: "UDP", target };
  if (result === "ok" || code === "tls" || code === "closed") return [{ ...common, result: "ok", details: "open" }];
  const hasTcp = all.some((other) => other.target === target && other.check === "TLS (TCP)" && other.result === "ok");
  const meanwhile = hasTcp ? "; until then the agent uses TLS" : "";
  const port = target.slice(target.lastIndexOf(":") + 1);
  if (code === "timed-out") {
    const remedy = `allow UDP port ${port} in the firewalls between this machine and the proxy, in both directions${meanwhile}`;
    return [{ ...common, result: hasTcp ? "note" : "failed", details: "dropped: nothing comes back", remedy }];
  }
  const remedy = `start the proxy, or let firewalls allow UDP port ${port}${meanwhile}`;
  return [{ ...common, result: hasTcp ? "note" : "failed", details: `rejected: ${details}`, remedy }];
}
