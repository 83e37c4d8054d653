// YAML with positions, for large files: the parser's events are kept as numbers, and nodes are created when they are read. A large text is
// parsed in a thread of its own.
import { Worker } from "node:worker_threads";
import { type Event, EVENT_ID, getScalarValue, parseEvents, SCALAR_STYLE, type ScalarEvent, YAMLException } from "js-yaml";
import { readYamlLibrary } from "./yaml_library.ts";

/** A part of a document. `at` is its offset in the text. */
export type YamlNode =
  | { readonly kind: "text"; readonly at: number; readonly text: string; readonly isNull: boolean }
  | { readonly kind: "list"; readonly at: number; readonly items: readonly YamlNode[] }
  | { readonly kind: "map"; readonly at: number; readonly pairs: readonly (readonly [key: YamlNode, value: YamlNode])[] }
  /** `*name`. */
  | { readonly kind: "alias"; readonly at: number; readonly name: string };

/** The text is not YAML. */
export class YamlError extends Error {
  override readonly name = "YamlError";
  /** @param at offset in the text */
  constructor(readonly at: number, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** Numbers for each event: its type with flags, and the start, the end, and the indentation of its text. */
const STRIDE = 4;

/** Runs in the thread too, so it uses nothing from outside. */
function packEvents(events: readonly Event[]): Int32Array {
  const packed = new Int32Array(events.length * 4);
  let i = 0;
  for (const event of events) {
    const { type, start = -1, valueStart = start, valueEnd = -1, anchorStart = -1, anchorEnd = -1, tagStart = -1 } = event as
      & { type: number }
      & Partial<Omit<ScalarEvent, "type"> & { start: number }>;
    const { style = 0, chomping = 0, fast = false, indent = 0 } = event as Partial<ScalarEvent>;
    const isAlias = type === 5;
    packed[i++] = type | (style << 4) | (chomping << 8) | (Number(fast) << 12) | (Number(tagStart >= 0) << 13);
    packed[i++] = isAlias ? anchorStart : valueStart;
    packed[i++] = isAlias ? anchorEnd : valueEnd;
    packed[i++] = indent;
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
  readonly #lineStarts: number[] = [0];
  /** The keys of the root, with the index of each one's value. */
  readonly root: readonly (readonly [key: YamlNode, value: number])[];

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
    for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) this.#lineStarts.push(at + 1);
    this.root = this.#readRoot();
  }

  /** The line of an offset, from 1 on. */
  lineOf(at: number): number {
    let [low, high] = [0, this.#lineStarts.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.#lineStarts[middle]! <= at) low = middle;
      else high = middle;
    }
    return low + 1;
  }

  /** The node at an index, with everything in it. */
  node(index: number): YamlNode {
    return this.#read(index)[0];
  }

  /** The items of the list at an index, one after the other; `undefined` if it is no list. */
  items(index: number): Iterable<YamlNode> | undefined {
    return this.#typeAt(index) === EVENT_ID.SEQUENCE ? this.#items(index + 1) : undefined;
  }

  *#items(index: number): Generator<YamlNode> {
    for (let node; this.#typeAt(index) !== EVENT_ID.POP;) {
      [node, index] = this.#read(index);
      yield node;
    }
  }

  #readRoot(): YamlDocument["root"] {
    const documents = [];
    for (let index = 0; index < this.#count; index = this.#skip(index)) documents.push(index);
    if (documents.length > 1) throw new YamlError(this.#startAt(documents[1]! + 1), "it has more than one document");
    const first = (documents[0] ?? 0) + 1;
    if (this.#typeAt(first) !== EVENT_ID.MAPPING) return [];
    const root: [YamlNode, number][] = [];
    for (let index = first + 1; this.#typeAt(index) !== EVENT_ID.POP;) {
      const [key, value] = this.#read(index);
      root.push([key, value]);
      index = this.#skip(value);
    }
    return root;
  }

  get #count(): number {
    return this.#events.length / STRIDE;
  }

  #typeAt(index: number): number | undefined {
    return index < this.#count ? this.#events[index * STRIDE]! & 15 : undefined;
  }

  /** An empty scalar is where the node before it begins. */
  #startAt(index: number): number {
    const start = this.#events[index * STRIDE + 1] ?? 0;
    return start >= 0 || index === 0 ? Math.max(0, start) : this.#startAt(index - 1);
  }

  /** The index behind a node. */
  #skip(index: number): number {
    let depth = 0;
    do {
      const type = this.#typeAt(index++);
      if (type === undefined) return this.#count;
      if (type === EVENT_ID.POP) depth--;
      else if (type === EVENT_ID.SEQUENCE || type === EVENT_ID.MAPPING || type === EVENT_ID.DOCUMENT) depth++;
    } while (depth > 0);
    return index;
  }

  /** The node at an index, and the index behind it. The parser bounds how deep they are nested. */
  #read(index: number): [YamlNode, number] {
    const flags = this.#events[index * STRIDE]!;
    const at = this.#startAt(index);
    if ((flags >> 13) & 1) throw new YamlError(at, "a tag, which begins with !, has no meaning here");
    switch (flags & 15) {
      case EVENT_ID.SEQUENCE: {
        const items = [];
        for (index++; this.#typeAt(index) !== EVENT_ID.POP;) {
          const [item, next] = this.#read(index);
          items.push(item);
          index = next;
        }
        return [{ kind: "list", at, items }, index + 1];
      }
      case EVENT_ID.MAPPING: {
        const pairs: [YamlNode, YamlNode][] = [];
        for (index++; this.#typeAt(index) !== EVENT_ID.POP;) {
          const [key, value] = this.#read(index);
          const [node, next] = this.#read(value);
          pairs.push([key, node]);
          index = next;
        }
        return [{ kind: "map", at, pairs }, index + 1];
      }
      case EVENT_ID.ALIAS:
        return [{ kind: "alias", at, name: this.#text.slice(at, this.#events[index * STRIDE + 2]) }, index + 1];
      default:
        return [this.#scalar(index), index + 1];
    }
  }

  #scalar(index: number): YamlNode {
    const first = index * STRIDE;
    const [flags, valueStart, valueEnd] = [this.#events[first]!, this.#events[first + 1]!, this.#events[first + 2]!];
    const style = (flags >> 4) & 15;
    const isFast = ((flags >> 12) & 1) === 1;
    const text = isFast ? this.#text.slice(valueStart, valueEnd) : getScalarValue(this.#text, {
      type: EVENT_ID.SCALAR,
      valueStart,
      valueEnd,
      anchorStart: -1,
      anchorEnd: -1,
      tagStart: -1,
      tagEnd: -1,
      style: style as ScalarEvent["style"],
      chomping: ((flags >> 8) & 15) as ScalarEvent["chomping"],
      indent: this.#events[first + 3]!,
      fast: false,
    });
    return { kind: "text", at: this.#startAt(index), text, isNull: style === SCALAR_STYLE.PLAIN && text.length <= 4 && NULL.test(text) };
  }
}

/** Null in YAML's core schema. */
const NULL = /^(?:null|Null|NULL|~|)$/;
