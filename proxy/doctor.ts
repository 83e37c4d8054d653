// The command `doctor proxy`: its files, its addresses, its store, and whether it answers.
import { type CreateNet, withNet } from "../shared/cli/network.ts";
import type { Subcommand } from "../shared/cli/command.ts";
import {
  checkCertificate,
  checkConfiguration,
  checkName,
  checkStore,
  checkTcp,
  describeVersion,
  diagnosisOptions,
  report,
} from "../shared/cli/diagnosis.ts";
import type { Finding } from "../shared/cli/findings.ts";
import { reachedHere, splitHostPort } from "../shared/address/host_port.ts";
import type { ValuesOf } from "../shared/config/option.ts";
import { checkExposure } from "../shared/frontend/exposure.ts";
import { PROBE_ALPN, runProbe } from "../shared/link/probe.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import { type ProxyOptions, proxyOptions } from "./options.ts";
import { checkProxyOptions } from "./proxy.ts";
import { agentAddresses, clientAddresses } from "./public_address.ts";

/** Dependencies of the diagnosis. */
export interface ProxyDiagnosis {
  readonly net: Net;
  readonly stateDirectory?: string;
  /** Returns the time in milliseconds since 1970. Default: that of the machine. */
  readonly now?: () => number;
}

export function proxyDoctor(
  createNet: CreateNet,
  stateDirectory: string | undefined,
): Subcommand<ProxyOptions & ValuesOf<typeof diagnosisOptions>> {
  return {
    name: "proxy",
    description: "Check the files, addresses and store of a proxy with these options, and whether it answers on this machine.",
    options: diagnosisOptions,
    service: proxyOptions,
    run: async (options, terminal) =>
      report(await withNet(createNet, (net) => diagnoseProxy(options, { net, stateDirectory })), options, terminal),
  };
}

/** Reports problems as checks, and does not reject for them. */
export async function diagnoseProxy(options: ProxyOptions, { net, stateDirectory, now = Date.now }: ProxyDiagnosis): Promise<Finding[]> {
  const findings: Finding[] = [describeVersion()];
  const isValid = await checkConfiguration(findings, async () => {
    await checkProxyOptions(options, { net, stateDirectory });
    return true;
  });
  const { agentServer, httpProxy } = options;
  findings.push(
    ...await checkCertificate("agent-server.tls.file.cert", agentServer.tls.file.cert, now()),
    ...await checkCertificate("http-proxy.tls.file.cert", httpProxy.tls.enable ? httpProxy.tls.file.cert : undefined, now()),
  );
  if (!isValid) return findings;
  findings.push(...checkExposure(options), ...await checkPublicAddresses(net, options), ...await checkStore(options.store));
  findings.push(await checkAgentPort(net, agentServer.listenAddress));
  findings.push({
    ...await checkTcp(net, reachedHere(httpProxy.listenAddress), { refused: NOT_RUNNING, silent: NOT_RUNNING }),
    check: "clients (TCP)",
  });
  return findings;
}

const NOT_RUNNING = "start the proxy with these options, and see its log";

/** Whether the public addresses can be reached by others, as far as this machine knows. */
async function checkPublicAddresses(net: Net, options: ProxyOptions): Promise<Finding[]> {
  const both = [["agent-server.public-address", agentAddresses(options)], ["http-proxy.public-address", clientAddresses(options)]] as const;
  return (await Promise.all(both.map(async ([option, { addresses, doubt }]): Promise<Finding[]> => {
    const common = { check: "public address", target: addresses.join(", ") };
    if (doubt !== undefined) return [{ ...common, result: "note", details: doubt }];
    const names = await Promise.all(addresses.map((address) => checkName(net, address, option)));
    return [{ ...common, result: "ok", details: `--${option}` }, ...names.filter((finding) => finding !== undefined)];
  }))).flat();
}

/** Opens a connection as an agent does, and moves data; it is no agent. */
async function checkAgentPort(net: Net, listen: string): Promise<Finding> {
  const target = reachedHere(listen);
  const common = { check: "agents (UDP)", target };
  try {
    const { host, port } = splitHostPort(target);
    const session = await net.connectQuic({
      host,
      port,
      serverName: host,
      tls: { insecureSkipVerify: true }, // it is this machine
      alpn: [PROBE_ALPN],
      timeoutMs: 2_000,
    });
    await runProbe(session);
    return { ...common, result: "ok", details: "the proxy answers over QUIC" };
  } catch (error) {
    if (!(error instanceof NetError)) throw error;
    return { ...common, result: "failed", details: error.message, remedy: NOT_RUNNING, code: error.code };
  }
}
