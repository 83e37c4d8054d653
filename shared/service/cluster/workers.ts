// The workers of one service as a cluster: the first one answers operators, and asks the others over the links between workers.
import { Buffer } from "node:buffer";
import { hostname } from "node:os";
import type { Duplex } from "../../net/stream.ts";
import type { Operator } from "../api/tokens.ts";
import { ROLES } from "../api/types.ts";
import type { Member } from "./member.ts";
import { type ClusterRequest, Members, type PreparedRequest } from "./members.ts";

/** The way to another worker. */
export interface WorkerRoute {
  readonly peer: { readonly index: number };
  readonly session: { openStream(): Promise<Duplex> };
}

/** The scheme of Authorization between workers, on links that only workers have. */
const SCHEME = "Worker";

export class WorkerMembers extends Members {
  override readonly isOneService = true;

  /** @param routes those to the other workers, at the moment */
  constructor(private readonly index: number, private readonly routes: () => Iterable<WorkerRoute>) {
    super();
  }

  override get self(): Member {
    return memberOf(this.index);
  }

  override others(): Promise<Member[]> {
    return Promise.resolve(Array.from(this.routes(), ({ peer }) => memberOf(peer.index)).sort((a, b) => a.address < b.address ? -1 : 1));
  }

  protected override prepare(member: Member, { operator, method, path, body }: Omit<ClusterRequest, "to">): Promise<PreparedRequest> {
    const route = [...this.routes()].find(({ peer }) => memberOf(peer.index).address === member.address);
    if (route === undefined) return Promise.reject(new Error("it has ended"));
    return Promise.resolve({
      net: { connectTcp: () => route.session.openStream() },
      method,
      target: path.startsWith("/") ? path : `/api/v1/${path}`,
      body: body === undefined ? "" : JSON.stringify(body),
      authorization: `${SCHEME} ${Buffer.from(JSON.stringify({ from: this.self.address, operator })).toString("base64url")}`,
    });
  }
}

/** On whose behalf another worker asks. */
export interface AskingWorker {
  readonly from: string;
  readonly operator: Operator;
}

/** @throws {Error} for what no worker sends */
export function readAskingWorker(authorization: string | null): AskingWorker {
  const [scheme, text = ""] = (authorization ?? "").split(" ");
  if (scheme !== SCHEME) throw new Error("it is no request of a worker");
  const { from, operator } = JSON.parse(Buffer.from(text, "base64url").toString()) as AskingWorker;
  if (!ROLES.includes(operator.role)) throw new Error("it names no operator");
  return { from, operator };
}

function memberOf(index: number): Member {
  return { address: `worker:${index}`, service: "proxy", host: hostname() };
}
