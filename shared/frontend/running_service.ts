// Common parts of a running proxy and a running load balancer: the addresses, and the end. The listeners are elsewhere.
import type { ServiceRuntime } from "../service/runtime.ts";
import type { ForwardListeners } from "./forwards/listeners.ts";
import type { ServiceFrontend } from "./service_frontend.ts";

/** A service with clients. The interfaces of the proxy and the load balancer describe its members. */
export abstract class RunningService {
  readonly #clients: ServiceFrontend;
  readonly #forwards: ForwardListeners;

  constructor(
    protected readonly runtime: ServiceRuntime,
    { clients, forwards }: { readonly clients: ServiceFrontend; readonly forwards: ForwardListeners },
  ) {
    this.#clients = clients;
    this.#forwards = forwards;
  }

  get clientAddress(): string {
    return this.#clients.addresses.clientAddress;
  }

  get socksAddress(): string | undefined {
    return this.#clients.addresses.socksAddress;
  }

  get http2Address(): string | undefined {
    return this.#clients.addresses.http2Address;
  }

  get forwardAddresses(): readonly string[] {
    return this.#forwards.addresses;
  }

  get adminAddress(): string | undefined {
    return this.runtime.admin.address;
  }

  get closed(): Promise<void> {
    return this.runtime.closed;
  }

  get handedOver(): Promise<void> {
    return this.runtime.handover.done;
  }

  reload(): Promise<void> {
    return this.runtime.reload();
  }

  close(): Promise<void> {
    return this.runtime.close();
  }
}
