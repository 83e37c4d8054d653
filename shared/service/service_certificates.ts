// The certificates of a service: reads their files again, and reports when they expire.
import { type Reloadable, startTlsRefresh } from "../tls/reloadable_tls.ts";
import { CertificateExpiry } from "./certificate_expiry.ts";
import type { ServiceContext } from "./context.ts";

/** The certificates of a service. */
export class ServiceCertificates {
  readonly #service: ServiceContext;
  readonly #refreshes = new Set<{ reload(): Promise<void>; close(): Promise<void> }>();
  readonly #expiry: CertificateExpiry;

  constructor(service: ServiceContext) {
    this.#service = service;
    this.#expiry = service.adopt(new CertificateExpiry(service.log, service.health), (expiry) => expiry.close());
    service.defer(async () => void await Promise.all([...this.#refreshes].map((refresh) => refresh.close())));
    service.onReload(() => this.reload());
  }

  /**
   * Reads the files of `tls` on {@link reload}, and if they change: see {@link startTlsRefresh}. `use` receives new settings. Ends with the
   * service, or when the result is called.
   */
  refresh<T>(tls: Reloadable<T>, intervalMs: () => number, use?: (tls: T) => void): () => void {
    const { close } = startTlsRefresh(tls, intervalMs, use);
    const refresh = { reload: () => tls.reload(use), close };
    this.#refreshes.add(refresh);
    return () => {
      this.#refreshes.delete(refresh);
      void close(); // never rejects
    };
  }

  /**
   * Reports the expiry of a certificate that `use` sees, in metrics and ahead of its end, until the result is called; `pem` returns its chain,
   * if there is one.
   * @param isVital whether the service is not ready when it has expired. Default `true`; `false` for one of many sites
   */
  watch(use: string, pem: () => string | undefined, isVital?: boolean): () => void {
    const stops = [this.#service.metrics.watchCertificate(use, pem), this.#expiry.watch(use, pem, isVital)];
    return () => {
      for (const stop of stops) stop();
    };
  }

  /** Reads certificates and their keys again. */
  async reload(): Promise<void> {
    await Promise.all([...this.#refreshes].map((refresh) => refresh.reload()));
    this.#expiry.check();
  }
}
