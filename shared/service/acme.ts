// The certificate of a service that an ACME authority issues: opens what ordering it needs, and answers challenges.
import { ConfigError } from "../config/option.ts";
import type { StateDirectory } from "../files/state_directory.ts";
import { type AcmeOptions, checkAcmeOptions } from "../tls/acme/options.ts";
import { Orderer } from "../tls/acme/orderer.ts";
import { checkCommand, createCommandSolver, HttpSolver, type SharedStore } from "../tls/acme/solvers.ts";
import type { Solver } from "../tls/acme/client.ts";
import { type TlsAlpnOptions, TlsAlpnSolver } from "../tls/acme/tls_alpn.ts";
import { AcmeState } from "../tls/acme/state.ts";
import { readCertificates } from "../tls/pem.ts";
import { readPemFile } from "../tls/reloadable_tls.ts";
import { serveTcp } from "./http_server.ts";
import type { ServiceRuntime } from "./runtime.ts";

/** Limit on waiting requests at the port for challenges. */
const MAX_PENDING = 256;

/** The certificate of a service. */
export interface Acme {
  /** The file with the chain and its key. It may not exist yet. */
  readonly certificateFile: string;
  /**
   * Listens for challenges, and orders certificates until the service closes. `shared` is for proxies that answer each other's challenges.
   * @param useChallenges sets the certificates with which the service's TLS ports answer challenges
   * @throws {NetError} as `listenTcp` of the network
   */
  start(runtime: ServiceRuntime, useChallenges: TlsAlpnOptions["use"], shared?: SharedStore): Promise<void>;
}

/**
 * Reads what the options name and prepares the state directory; `undefined` if they name no domain.
 * @param isCheck whether nothing is written
 * @throws {ConfigError}
 */
export async function openAcme(options: AcmeOptions, { path }: StateDirectory, isCheck = false): Promise<Acme | undefined> {
  checkAcmeOptions(options);
  if (options.domain.length === 0) return undefined;
  if (path === undefined) throw new ConfigError("Cannot use --acme.domain: there is no state directory; set --state-dir");
  const { rootCa } = options.file;
  const ca = rootCa && readCertificates(await readPemFile("acme.file.root-ca", rootCa), "authorities").text;
  if (options.dnsCommand !== undefined) {
    await checkCommand(options.dnsCommand).catch((cause: Error) => {
      throw new ConfigError(`Cannot use --acme.dns-command ${options.dnsCommand}: ${cause.message}`, { cause });
    });
  }
  const state = new AcmeState(path, options.directory);
  if (!isCheck) await state.open();
  return {
    certificateFile: state.certificateFile,
    async start(runtime, use, shared) {
      const { log, health, metrics } = runtime;
      const stopping = new AbortController();
      const { signal } = stopping;
      const { domain: names, challenge, dnsCommand, httpListenAddress } = options;
      let solver: Solver;
      if (dnsCommand !== undefined) solver = createCommandSolver(dnsCommand, log, signal);
      else if (challenge === "http-01") solver = await listenForChallenges(runtime, httpListenAddress, new HttpSolver(log, shared));
      else {
        const answering = solver = new TlsAlpnSolver({ names, use, shared, log, signal });
        const polling = answering.run(); // never rejects
        runtime.defer(() => polling);
      }
      const orderer = new Orderer({
        options,
        ca,
        state,
        solver,
        shared,
        log,
        signal,
        onState: (problem) => problem === undefined ? health.setReady("certificate") : health.setUnready("certificate", problem),
        onOrder: metrics.outcomes("reverse_http_acme_orders_total", "Orders of certificates by ACME: issued or failed."),
        onCertificate: () => runtime.certificates.reload(),
      });
      health.setUnready("certificate", "the certificate has not been checked yet");
      const running = orderer.run(); // never rejects
      runtime.defer(async () => {
        stopping.abort();
        await running;
      });
      runtime.onReload(() => orderer.retry());
    },
  };
}

/** Answers the challenges of `solver` at `address`, and returns it. */
async function listenForChallenges(runtime: ServiceRuntime, address: string, solver: HttpSolver): Promise<HttpSolver> {
  const listener = await runtime.net.listenTcp({ address, maxPendingHeads: MAX_PENDING });
  const serving = serveTcp(listener, (request) => respond(solver, request));
  runtime.defer(async () => {
    listener.close();
    await serving;
  });
  runtime.log.info("answering challenges for certificates", { address: listener.address });
  return solver;
}

async function respond(solver: HttpSolver, { method, url }: Request): Promise<Response> {
  if (method !== "GET") return new Response("Only GET and HEAD are served\n", { status: 405, headers: { "Allow": "GET, HEAD" } });
  const answer = await solver.answer(new URL(url).pathname);
  if (answer === undefined) return new Response("There is no such challenge\n", { status: 404 });
  return new Response(answer, { headers: { "Content-Type": "application/octet-stream", "Cache-Control": "no-store" } });
}
