// Which certificate files the hosts of a listener have: TLS is agreed on by the server name, before a request is known.
import type { HostTls, ServerTls } from "../../net/tls.ts";
import type { Forward } from "./forwards.ts";
import { normalizeName, patternsOf } from "./server_names.ts";

/** The settings of the name, or of its longest zone; `undefined` if there are none, or the client asks for no name. */
export function tlsOfHost(hosts: readonly HostTls[] = [], host: string | undefined): ServerTls | undefined {
  for (const pattern of host === undefined ? [] : patternsOf(host)) {
    const found = hosts.find(({ names }) => names.includes(pattern));
    if (found) return found.tls;
  }
  return undefined;
}

/** Names of the files of a server's TLS. */
export interface TlsFiles {
  readonly cert?: string;
  readonly key?: string;
  readonly clientCa?: string;
}

/** Hosts with files of their own. */
export interface HostFiles {
  /** Their patterns, normalized. */
  readonly names: readonly string[];
  readonly files: TlsFiles;
}

/** The certificates of a listener, by host. */
export class HostCertificates {
  /**
   * Of clients that ask for another name, or for none: those of the records without `host`, or else those of the first record that names
   * files. Empty if none does.
   */
  readonly fallback: TlsFiles;
  /** The files of all names that have some; none if all have the same. */
  readonly hosts: readonly HostFiles[];
  readonly #byName = new Map<string, TlsFiles>();

  /** @throws {RangeError} if records for the same names have different files, or some files are missing */
  constructor(listen: string, forwards: readonly Forward[]) {
    const hosts = new Map<string, { readonly names: string[]; readonly files: TlsFiles }>();
    for (const forward of forwards) {
      const given = filesOf(forward);
      if (given === undefined) continue;
      const key = JSON.stringify(given);
      const { names, files } = hosts.get(key) ?? { names: [], files: given };
      hosts.set(key, { names, files });
      for (const name of namesOf(forward)) {
        const other = this.#byName.get(name);
        if (other !== undefined && other !== files) throw conflict(listen, name, files, other);
        this.#byName.set(name, files);
        if (name !== ANY && other === undefined) names.push(name);
      }
    }
    const all = [...hosts.values()];
    this.fallback = this.#byName.get(ANY) ?? all[0]?.files ?? {};
    this.hosts = all.length < 2 ? [] : all.filter(({ names }) => names.length > 0);
  }

  /**
   * The files for a server name or host, without a port: its own, those of its longest zone, or those of all others. The same files are the
   * same object.
   * @param name `undefined` for a client that names none
   */
  of(name: string | undefined): TlsFiles {
    if (name === undefined || this.hosts.length === 0) return this.fallback;
    const pattern = patternsOf(name).find((pattern) => this.#byName.has(pattern));
    return pattern === undefined ? this.fallback : this.#byName.get(pattern)!;
  }
}

/** Stands for records for every host. */
const ANY = "";

function namesOf({ host }: Forward): string[] {
  return host.length > 0 ? host.map(normalizeName) : [ANY];
}

/** @throws {RangeError} if some are missing */
function filesOf({ listen, certFile: cert, keyFile: key, clientCaFile: clientCa }: Forward): TlsFiles | undefined {
  const needs = (given: string, missing: string) => new RangeError(`the record that listens on ${listen} has ${given} and no ${missing}`);
  if (cert !== undefined && key === undefined) throw needs("cert-file", "key-file");
  if (key !== undefined && cert === undefined) throw needs("key-file", "cert-file");
  if (clientCa !== undefined && cert === undefined) throw needs("client-ca-file", "cert-file");
  return cert === undefined ? undefined : { cert, key, clientCa };
}

function conflict(listen: string, name: string, files: TlsFiles, other: TlsFiles): RangeError {
  const keys = [["cert-file", "cert"], ["key-file", "key"], ["client-ca-file", "clientCa"]] as const;
  const [key, file] = keys.find(([, file]) => files[file] !== other[file])!;
  const who = name === ANY ? "without host" : `with host=${name}`;
  return new RangeError(`two records ${who} that listen on ${listen} have ${key}=${other[file] ?? ""} and ${key}=${files[file] ?? ""}`);
}
