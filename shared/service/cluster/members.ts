// Asks the other members on behalf of an operator, and says which of them did not answer. A member that is asked answers for itself, so
// requests never travel further than one hop.
import { messageOf } from "../../log/error_message.ts";
import { printable } from "../../net/printable.ts";
import type { Operator } from "../api/tokens.ts";
import { askMember, followMember, type FollowOptions, type MemberResponse, type RequestOptions } from "./ask.ts";
import type { MemberRequest } from "./key.ts";
import type { Member } from "./member.ts";

/** Time in milliseconds for the responses of all members. */
const TIMEOUT_MS = 4_000;
/** Maximum bytes of all responses to one request, and number of members queried concurrently. */
const MAX_BYTES = 64 << 20;
const MAX_PARALLEL = 16;
/** Requests of operators for the cluster that are served at once. */
const MAX_REQUESTS = 16;
/** Age in milliseconds up to which responses serve others who ask for the same. */
const MAX_AGE_MS = 1_000;
/** Longest reason of a member in a report, in characters. */
const MAX_REASON = 300;

/** A stream of events is for all who watch. */
const FOLLOWER: Operator = { name: "cluster", role: "viewer" };

/** What a member has answered, or why it did not. */
export interface Answer {
  readonly member: Member;
  readonly response?: MemberResponse;
  /** In a few words. */
  readonly error?: string;
}

/** What operators ask the others for. */
export interface ClusterRequest extends Pick<MemberRequest, "operator" | "method"> {
  /** Path and query, below `/api/v1/`. */
  readonly path: string;
  readonly body?: object;
  readonly to: readonly Member[];
}

/** Too many requests wait for other members. */
export class ClusterBusyError extends Error {
  override readonly name = "ClusterBusyError";
}

/** A request as the member will see it, and the way to it. */
export type PreparedRequest = Omit<RequestOptions, "timeoutMs">;

/** The processes that answer operators for each other, as one of them sees them. */
export abstract class Members {
  /** Whether operators see one service: what they ask for is about all members by default. */
  readonly isOneService: boolean = false;
  readonly #answers = new Map<string, { readonly at: number; readonly answers: Promise<Answer[]> }>();
  #requests = 0;

  /** This process. */
  abstract get self(): Member;

  /** The other members. */
  abstract others(): Promise<Member[]>;

  /** A request as the member will see it. */
  protected abstract prepare(member: Member, request: Omit<ClusterRequest, "to">): Promise<PreparedRequest>;

  /**
   * Asks members. Those who read the same within a second get the same answers.
   * @throws {ClusterBusyError}
   */
  async ask(request: ClusterRequest): Promise<Answer[]> {
    const { method, path, to } = request;
    if (method !== "GET") return await this.#askAll(request);
    const now = performance.now();
    for (const [key, { at }] of this.#answers) if (now - at >= MAX_AGE_MS) this.#answers.delete(key);
    const key = `${path} ${to.map(({ address }) => address).join()}`;
    const known = this.#answers.get(key);
    if (known) return await known.answers;
    const answers = this.#askAll(request);
    this.#answers.set(key, { at: now, answers });
    return await answers;
  }

  async #askAll(request: ClusterRequest): Promise<Answer[]> {
    if (this.#requests >= MAX_REQUESTS) throw new ClusterBusyError("too many requests wait for other members: try again");
    this.#requests++;
    try {
      const deadline = performance.now() + TIMEOUT_MS;
      const budget = { left: MAX_BYTES };
      const answers: Answer[] = [];
      const left = request.to.entries();
      const work = async () => {
        for (const [i, member] of left) answers[i] = await this.#askOne(member, request, deadline, budget);
      };
      await Promise.all(Array.from({ length: MAX_PARALLEL }, work));
      return answers;
    } finally {
      this.#requests--;
    }
  }

  /** Never rejects. */
  async #askOne(
    member: Member,
    { operator, method, path, body }: ClusterRequest,
    deadline: number,
    budget: { left: number },
  ): Promise<Answer> {
    try {
      const request = await this.prepare(member, { operator, method, path, body });
      const timeoutMs = deadline - performance.now();
      if (timeoutMs <= 0) return { member, error: "no response in time" };
      return { member, response: await askMember(member, { ...request, timeoutMs, budget }) };
    } catch (error) {
      return { member, error: reasonOf(error) };
    }
  }

  /**
   * Follows a member's stream of events, until the signal ends it.
   * @returns why there is no stream, or no longer, in a few words
   */
  async follow(
    member: Member,
    { topics, ...options }: Pick<FollowOptions, "signal" | "opened" | "take"> & { readonly topics: readonly string[] },
  ): Promise<string> {
    try {
      const request = await this.prepare(member, { operator: FOLLOWER, method: "GET", path: `events?topics=${topics.join()}` });
      await followMember(member, { ...request, ...options, timeoutMs: TIMEOUT_MS });
      return "it ended the connection";
    } catch (error) {
      return reasonOf(error);
    }
  }
}

function reasonOf(error: unknown): string {
  return printable(messageOf(error), MAX_REASON);
}
