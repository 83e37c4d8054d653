// The command `doctor client`: every step of a tunnel, from the options to the agent.
import { type CreateNet, withNet } from "../shared/cli/network.ts";
import type { Subcommand } from "../shared/cli/command.ts";
import { checkConfiguration, checkName, checkTcp, checkToken, describeVersion, diagnosisOptions, report } from "../shared/cli/diagnosis.ts";
import type { Finding } from "../shared/cli/findings.ts";
import { type Authority, formatAuthority } from "../shared/address/authority.ts";
import { splitHostPort } from "../shared/address/host_port.ts";
import { ConfigError, type ValuesOf } from "../shared/config/option.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import { tlsAdvice } from "../shared/tls/advice.ts";
import { expandJoin } from "./join.ts";
import { type ClientOptions, clientOptions } from "./options.ts";
import { type Access, checkAccess, checkFiles, connectToProxy, openTunnel, parseDestination, readCredentials, readTls } from "./tunnel.ts";
import { TunnelFailure } from "./tunnel_failure.ts";

export function clientDoctor(createNet: CreateNet): Subcommand<ClientOptions & ValuesOf<typeof diagnosisOptions>> {
  return {
    name: "client",
    description: "Check every step of a tunnel with these options or this profile, to a destination or only as far as the agent.",
    options: diagnosisOptions,
    profile: clientOptions,
    expansion: { option: "join", expand: expandJoin },
    operands: { name: "host:port", description: "Destination, as the agent reaches it." },
    async run(options, terminal, { operands: [target] }) {
      const destination = target === undefined ? undefined : parseDestination(target);
      report(await withNet(createNet, (net) => diagnoseClient(options, destination, { net })), options, terminal);
    },
  };
}

/** Where nothing listens: the agent's answer is all that is wanted. */
const NOWHERE: Authority = { host: "127.0.0.1", port: 9 };

/** Reports problems as checks, and does not reject for them. */
export async function diagnoseClient(
  options: ClientOptions,
  destination: Authority | undefined,
  { net, now = Date.now }: { net: Net; now?: () => number },
): Promise<Finding[]> {
  const findings: Finding[] = [describeVersion()];
  const access = await checkConfiguration(findings, async () => {
    const access = checkAccess(options);
    await checkFiles(net, access).catch((cause) => {
      // a session that has ended
      throw cause instanceof TunnelFailure ? new ConfigError(cause.message, { cause }) : cause;
    });
    return access;
  });
  if (access === undefined) return findings;
  const { proxy, agentId } = access;
  const credentials = await readCredentials(access);
  if (options.token !== undefined || options.tokenCommand !== undefined) {
    const token = credentials!.scheme === "basic" ? credentials!.password : credentials!.token;
    findings.push(checkToken(token, { role: "client", agentId }, now()));
  }
  const name = await checkName(net, proxy, "proxy");
  if (name) findings.push(name);
  if (name?.result === "failed") return findings;
  const tcp = await checkTcp(net, proxy, {
    refused: "start the proxy there, or correct the port in --proxy: it is that of --http-proxy.listen-address",
    silent: "let firewalls allow TCP to this address, or correct --proxy",
  });
  findings.push(tcp);
  if (tcp.result === "failed") return findings;
  if (access.tls.enable) findings.push(await checkTls(net, access));
  if (findings.at(-1)!.result === "failed") return findings;
  if (access.http2) findings.push(await checkHttp2(net, access));
  return [...findings, ...await checkTunnel(net, access, destination)];
}

/** Whether the tunnels share a connection, as `--http2` wants. Without it they still have one each. */
async function checkHttp2(net: Net, { proxy, tls, connectTimeout: timeoutMs }: Access): Promise<Finding> {
  const common = { check: "HTTP/2", target: proxy };
  try {
    (await net.connectHttp2({ ...splitHostPort(proxy), timeoutMs, tls: await readTls(net, tls) })).release();
    return { ...common, result: "ok", details: "spoken there: tunnels share a connection" };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    const details = error.code === "not-http2"
      ? "not spoken there: each tunnel has a connection of its own, over HTTP/1.1"
      : `no connection: ${error.message}`;
    return { ...common, result: "failed", details, remedy: HTTP2_REMEDY, code: error.code };
  }
}

const HTTP2_REMEDY = "set --proxy to the address of --http-proxy.http2-listen-address of the proxy, or leave out --http2";

async function checkTls(net: Net, access: Access): Promise<Finding> {
  const common = { check: "TLS", target: access.proxy };
  try {
    (await connectToProxy(net, access)).close();
  } catch (error) {
    if (!(error instanceof TunnelFailure && error.cause instanceof NetError)) throw error;
    const { cause } = error;
    const remedy = tlsAdvice(cause, { group: "tls", address: "proxy" }, access.tls.file.rootCa) ??
      "leave out --tls.enable, if the proxy has no TLS for clients, or correct the port";
    const inspected = /UnknownIssuer|is not the pinned one/.test(cause.message)
      ? "; if the issuer is not the proxy's, a middlebox inspects TLS: let it pass this address unchanged"
      : "";
    return { ...common, result: "failed", details: cause.message, remedy: remedy + inspected, code: cause.code };
  }
  const { insecureSkipVerify, pinSha256, file } = access.tls;
  const trust = insecureSkipVerify
    ? "its certificate is not verified: --tls.insecure-skip-verify"
    : pinSha256.length > 0
    ? "its certificate has the pin"
    : `its certificate is issued by an authority of ${file.rootCa === undefined ? "this system" : "--tls.file.root-ca"}`;
  return { ...common, result: insecureSkipVerify ? "note" : "ok", details: trust };
}

/** Asks the proxy for a tunnel: whether it accepts the credentials, and whether the agent answers. */
async function checkTunnel(net: Net, access: Access, destination: Authority | undefined): Promise<Finding[]> {
  const target = formatAuthority(destination ?? NOWHERE);
  const credentials = { check: "credentials", target: access.proxy };
  const agent = { check: "agent", target: access.agentId ?? "" };
  const way = { check: "destination", target };
  const accepted: Finding = { ...credentials, result: "ok", details: "accepted by the proxy" };
  const answers: Finding = { ...agent, result: "ok", details: "connected, and answers" };
  try {
    (await openTunnel(net, access, destination ?? NOWHERE)).close();
    return [accepted, answers, { ...way, result: "ok", details: "the agent has connected to it" }];
  } catch (error) {
    if (!(error instanceof TunnelFailure)) throw error;
    const details = error.message;
    const fail = (common: typeof way, remedy: string): Finding => ({ ...common, result: "failed", details, remedy });
    switch (error.kind) {
      case "proxy":
        return [fail({ check: "proxy", target: access.proxy }, PROXY_REMEDY)];
      case "denied":
        if (error.status !== 403) return [fail(credentials, access.issuer === undefined ? CREDENTIALS_REMEDY : SIGN_IN_REMEDY)];
        if (destination === undefined) {
          return [accepted, { ...way, result: "note", details: `${details}; check a destination that is allowed` }];
        }
        return [accepted, fail(way, "add it to --http-proxy.host-whitelist, --agent-client.host-whitelist, or the token's --allow")];
      case "no-agent":
        return [
          accepted,
          fail(agent, "start the agent, or correct --agent-id; reverse-http doctor agent at its machine says why it is not connected"),
        ];
      default:
        if (destination === undefined && error.status === 502) return [accepted, answers];
        return [accepted, error.status === 502 ? answers : { ...agent, result: "note", details }, fail(way, DESTINATION_REMEDY)];
    }
  }
}

const PROXY_REMEDY = "correct --proxy: it must be the proxy's port for clients; with TLS there, set --tls.enable";
const CREDENTIALS_REMEDY =
  "create a token with the key of this proxy, reverse-http invite --client; if it was just created, compare the clocks of both machines";
const SIGN_IN_REMEDY =
  "sign in again with reverse-http login; the proxy's log says why it refuses the token: compare --auth.oidc.issuer and --auth.oidc.audience there";
const DESTINATION_REMEDY = "start the server there, or correct the destination: it is what the agent's machine can reach";
