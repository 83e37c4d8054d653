// The command `doctor lb`: its files, its store, and whether it answers.
import { type CreateNet, withNet } from "../shared/cli/network.ts";
import type { Subcommand } from "../shared/cli/command.ts";
import {
  checkCertificate,
  checkConfiguration,
  checkStore,
  checkTcp,
  describeVersion,
  diagnosisOptions,
  report,
} from "../shared/cli/diagnosis.ts";
import type { Finding } from "../shared/cli/findings.ts";
import { reachedHere } from "../shared/address/host_port.ts";
import type { ValuesOf } from "../shared/config/option.ts";
import { checkExposure } from "../shared/frontend/exposure.ts";
import type { Net } from "../shared/net/net.ts";
import { checkLoadBalancerOptions } from "./lb.ts";
import { lbOptions, type LoadBalancerOptions } from "./options.ts";

/** @param stateDirectory of accounts and certificates by ACME, if no option names one */
export function lbDoctor(
  createNet: CreateNet,
  stateDirectory: string | undefined,
): Subcommand<LoadBalancerOptions & ValuesOf<typeof diagnosisOptions>> {
  return {
    name: "lb",
    description: "Check the files and the store of an lb with these options, and whether it answers on this machine.",
    options: diagnosisOptions,
    service: lbOptions,
    run: async (options, terminal) =>
      report(await withNet(createNet, (net) => diagnoseLoadBalancer(options, { net, stateDirectory })), options, terminal),
  };
}

/** Reports problems as checks, and does not reject for them. */
export async function diagnoseLoadBalancer(
  options: LoadBalancerOptions,
  { net, stateDirectory, now = Date.now }: { net: Net; stateDirectory?: string; now?: () => number },
): Promise<Finding[]> {
  const findings: Finding[] = [describeVersion()];
  const { httpProxy, httpConnector } = options;
  const isValid = await checkConfiguration(findings, async () => {
    await checkLoadBalancerOptions(options, { net, stateDirectory });
    return true;
  });
  findings.push(
    ...await checkCertificate("http-proxy.tls.file.cert", httpProxy.tls.enable ? httpProxy.tls.file.cert : undefined, now()),
    ...await checkCertificate("http-connector.tls.file.cert", httpConnector.tls.file.cert, now()),
  );
  if (!isValid) return findings;
  findings.push(...checkExposure(options), ...await checkStore(options.store));
  const start = "start lb with these options, and see its log";
  findings.push({
    ...await checkTcp(net, reachedHere(httpProxy.listenAddress), { refused: start, silent: start }),
    check: "clients (TCP)",
  });
  return findings;
}
