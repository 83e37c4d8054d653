// The proxy's hello, by which agents can log how clients reach it.
import { isEvery, splitHostPort } from "../shared/address/host_port.ts";
import type { Hello } from "../shared/link/message.ts";
import { pinFor } from "../shared/tls/trust.ts";
import { VERSION } from "../shared/version.ts";
import type { ProxyOptions } from "./options.ts";
import { clientAddresses } from "./public_address.ts";
import type { ProxyTls } from "./tls.ts";

/**
 * Returns what describes the proxy at the moment.
 * @param bound the address bound for clients
 * @param instance of this process
 */
export function createHello(options: ProxyOptions, bound: string, { clients }: ProxyTls, instance: string): () => Hello {
  const { doubt, addresses: [known] } = clientAddresses(options);
  const { port } = splitHostPort(bound);
  // where the proxy can only guess its address, agents know at which one they reach it
  const isKnown = doubt === undefined || !isEvery(options.httpProxy.listenAddress);
  const address = isKnown ? known!.replace(/:0$/, `:${port}`) : `:${port}`;
  const fixed = { version: `reverse-http/${VERSION}`, instance, host: "", labels: {} };
  const access = { address, tls: clients !== undefined, token: options.auth.type !== "noauth" };
  let pinned: { readonly cert: string; readonly pin?: string } | undefined;
  return () => {
    const cert = clients?.current.cert;
    if (cert !== undefined && pinned?.cert !== cert) pinned = { cert, pin: pinFor(cert) }; // it takes milliseconds
    return { ...fixed, clients: { ...access, pin: pinned?.pin } };
  };
}
