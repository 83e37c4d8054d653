// A proxy whose clients and agents need certificates, and files that are replaced while it runs.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Authority, type Issued, makeAuthority } from "./certificates.ts";
import { Site } from "./programs.ts";
import { type ClientTls, Origin, type Wire } from "./sockets.ts";

/** A site with an authority for the certificates of agents and clients. */
export class Secured implements AsyncDisposable {
  private constructor(readonly site: Site, readonly authority: Authority, readonly origin: Origin) {}

  static async create(serve?: (wire: Wire) => Promise<void>): Promise<Secured> {
    return new Secured(await Site.create(), await makeAuthority("Members"), await Origin.start(serve));
  }

  /** Writes a file atomically. */
  write(name: string, text: string): string {
    const file = join(this.site.folder.path, name);
    writeFileSync(`${file}.new`, text, { mode: 0o600 });
    renameSync(`${file}.new`, file);
    return file;
  }

  /** The options of a listener that asks for certificates and looks at its files all the time. */
  mutual(group: "agent-server" | "http-proxy"): string[] {
    return [
      `--${group}.tls.file.client-ca=${this.write("members.pem", this.authority.cert)}`,
      `--${group}.tls.file.client-crl=${join(this.site.folder.path, "crl.pem")}`,
      `--${group}.tls.refresh=20ms`,
    ];
  }

  forClients(): string[] {
    const { cert, key } = this.site.files;
    return ["--http-proxy.tls.enable", `--http-proxy.tls.file.cert=${cert}`, `--http-proxy.tls.file.key=${key}`];
  }

  agentCertificate(name: string, { cert, key }: Issued): string[] {
    return [
      `--agent-client.tls.file.cert=${this.write(`${name}-cert.pem`, cert)}`,
      `--agent-client.tls.file.key=${this.write(`${name}-key.pem`, key)}`,
    ];
  }

  /** What a client believes, and the certificate that it shows. */
  clientTls(issued?: Issued): ClientTls {
    return { ca: readFileSync(this.site.files.ca, "utf8"), cert: issued?.cert, key: issued?.key };
  }

  /** A new certificate for the proxy, of the authority that all trust. */
  async replace(): Promise<void> {
    const { cert, key } = await this.site.authority.issue({ names: ["localhost", "127.0.0.1"] });
    this.write("both.pem", cert + key);
  }

  async revoke(...serialNumbers: string[]): Promise<void> {
    this.write("crl.pem", await this.authority.revocationList(serialNumbers));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.origin[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
  }
}
