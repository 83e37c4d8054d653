// YAML with positions, for large files: the parser's events are kept as numbers, of which nodes are indices. A large text is parsed in a thread
// of its own.
import { Worker } from "node:worker_threads";
import { type Event, EVENT_ID, getScalarValue, parseEvents, SCALAR_STYLE, type ScalarEvent, YAMLException } from "js-yaml";
import { readYamlLibrary } from "./yaml_library.ts";

/** A part of a document: the index of its event. */
export type YamlNode = number;

/** The text is not YAML. */
export class YamlError extends Error {
  override readonly name = "YamlError";
  /** @param at offset in the text */
  constructor(readonly at: number, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/**
 * Numbers for each event: its type with flags, the start of its text, the end of its text, or in a collection the event behind it, and the
 * indentation.
 */
const STRIDE = 4;

/** Runs in the thread too, so it uses nothing from outside. */
function packEvents(events: readonly Event[]): Int32Array {
  const packed = new Int32Array(events.length * 4);
  const open: number[] = [];
  for (let i = 0; i < events.length; i++) {
    const event = events[i] as { readonly type: number; readonly start: number } & Omit<ScalarEvent, "type">;
    const [at, { type }] = [i * 4, event];
    packed[at] = type;
    packed[at + 1] = -1;
    if (type === 6) { // pop
      packed[open.pop()! * 4 + 2] = i + 1;
    } else if (type === 4) { // scalar
      packed[at] = type | (event.style << 4) | (event.chomping << 8) | (Number(event.fast) << 12) | (Number(event.tagStart >= 0) << 13);
      packed[at + 1] = event.valueStart;
      packed[at + 2] = event.valueEnd;
      packed[at + 3] = event.indent;
    } else if (type === 5) { // alias
      packed[at + 1] = event.anchorStart;
      packed[at + 2] = event.anchorEnd;
    } else {
      open.push(i);
      if (event.start !== undefined) {
        packed[at] = type | (Number(event.tagStart >= 0) << 13);
        packed[at + 1] = event.start;
      }
    }
  }
  return packed;
}

/** Runs in the thread. */
const PROGRAM = `
const { parentPort, workerData: { library, text } } = require("node:worker_threads");
const yaml = {};
new Function("exports", "module", library)(yaml, { exports: yaml });
const packEvents = ${packEvents};
try {
  const events = packEvents(yaml.parseEvents(text, {}));
  parentPort.postMessage({ events }, [events.buffer]);
} catch (error) {
  parentPort.postMessage({ at: error.mark?.position ?? 0, reason: error.reason ?? String(error) });
}
`;

interface Parsed {
  readonly events?: Int32Array;
  readonly at?: number;
  readonly reason?: string;
}

/** A document whose root is a mapping, or is empty. */
export class YamlDocument {
  readonly #text: string;
  readonly #events: Int32Array;
  /** A line, and the offset at which it begins: lines are asked for in about their order. */
  #line = { number: 1, start: 0 };
  /** The root, if the document has a mapping. */
  readonly root: YamlNode | undefined;

  /** @throws {YamlError} */
  static parse(text: string): YamlDocument {
    try {
      return new YamlDocument(text, packEvents(parseEvents(text, {})));
    } catch (cause) {
      if (!(cause instanceof YAMLException)) throw cause;
      throw new YamlError(cause.mark?.position ?? 0, cause.reason, { cause });
    }
  }

  /**
   * As {@link parse}, in a thread.
   * @throws {YamlError}
   */
  static async parseInThread(text: string): Promise<YamlDocument> {
    const workerData = { library: await readYamlLibrary(), text };
    const { events, at = 0, reason = "" } = await new Promise<Parsed>((resolve, reject) => {
      const worker = new Worker(PROGRAM, { eval: true, workerData });
      worker.on("message", resolve); // it ends by itself then; to terminate it would block this thread meanwhile
      worker.on("error", reject);
      worker.on("exit", () => reject(new Error("The thread that parses YAML has ended")));
    });
    if (events === undefined) throw new YamlError(at, reason);
    return new YamlDocument(text, events);
  }

  private constructor(text: string, events: Int32Array) {
    this.#text = text;
    this.#events = events;
    const count = events.length / STRIDE;
    for (let node = 0; node < count; node++) {
      if ((events[node * STRIDE]! >> 13) & 1) throw new YamlError(this.#startAt(node), "a tag, which begins with !, has no meaning here");
    }
    const second = count === 0 ? 0 : this.behind(0);
    if (second < count) throw new YamlError(this.#startAt(second + 1), "it has more than one document");
    this.root = count > 0 && this.kindOf(1) === "map" ? 1 : undefined;
  }

  /** The line at which a node begins, from 1 on. */
  lineOf(node: YamlNode): number {
    const at = this.#startAt(node);
    if (at < this.#line.start) this.#line = { number: 1, start: 0 };
    let { number, start } = this.#line;
    for (let end; (end = this.#text.indexOf("\n", start)) >= 0 && end < at; number++) start = end + 1;
    this.#line = { number, start };
    return number;
  }

  kindOf(node: YamlNode): "text" | "list" | "map" | "alias" {
    switch (this.#typeAt(node)) {
      case EVENT_ID.SEQUENCE:
        return "list";
      case EVENT_ID.MAPPING:
        return "map";
      case EVENT_ID.ALIAS:
        return "alias";
      default:
        return "text";
    }
  }

  /** The first item of a list, or the first key of a mapping; {@link isEnd} says whether there is one. */
  first(node: YamlNode): YamlNode {
    return node + 1;
  }

  /** The node behind one with all that it contains: the next item, the value of a key, or the next key. */
  behind(node: YamlNode): YamlNode {
    const type = this.#typeAt(node);
    const isCollection = type === EVENT_ID.SEQUENCE || type === EVENT_ID.MAPPING || type === EVENT_ID.DOCUMENT;
    return isCollection ? this.#events[node * STRIDE + 2]! : node + 1;
  }

  /** Whether a list or a mapping has nothing more. */
  isEnd(node: YamlNode): boolean {
    return this.#typeAt(node) === EVENT_ID.POP;
  }

  /** The text of a scalar, or the name of an alias, without its `*`. */
  textOf(node: YamlNode): string {
    const first = node * STRIDE;
    const [flags, valueStart, valueEnd] = [this.#events[first]!, this.#events[first + 1]!, this.#events[first + 2]!];
    if ((flags >> 12) & 1 || (flags & 15) === EVENT_ID.ALIAS) return this.#text.slice(valueStart, valueEnd);
    return getScalarValue(this.#text, {
      type: EVENT_ID.SCALAR,
      valueStart,
      valueEnd,
      anchorStart: -1,
      anchorEnd: -1,
      tagStart: -1,
      tagEnd: -1,
      style: ((flags >> 4) & 15) as ScalarEvent["style"],
      chomping: ((flags >> 8) & 15) as ScalarEvent["chomping"],
      indent: this.#events[first + 3]!,
      fast: false,
    });
  }

  /** Whether a node is the text, plainly written: what this does not know may be so, too. */
  isText(node: YamlNode, text: string): boolean {
    const first = node * STRIDE;
    const start = this.#events[first + 1]!;
    return ((this.#events[first]! >> 12) & 1) === 1 && this.#events[first + 2]! - start === text.length &&
      this.#text.startsWith(text, start);
  }

  /** Whether a node is null in YAML's core schema. */
  isNull(node: YamlNode): boolean {
    const first = node * STRIDE;
    const flags = this.#events[first]!;
    const isPlain = (flags & 15) === EVENT_ID.SCALAR && ((flags >> 4) & 15) === SCALAR_STYLE.PLAIN;
    return isPlain && this.#events[first + 2]! - this.#events[first + 1]! <= 4 && NULL.test(this.textOf(node));
  }

  #typeAt(node: YamlNode): number {
    return this.#events[node * STRIDE]! & 15;
  }

  /** An empty scalar is where the node before it begins. */
  #startAt(node: YamlNode): number {
    const start = this.#events[node * STRIDE + 1] ?? 0;
    return start >= 0 || node === 0 ? Math.max(0, start) : this.#startAt(node - 1);
  }
}

const NULL = /^(?:null|Null|NULL|~|)$/;
