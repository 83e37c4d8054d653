// YAML with positions, for large files: the parser's events are kept as numbers, of which nodes are indices. The items of a long list are parsed
// in parts, whose events are dropped at once, and between which other tasks have their turn.
import { type Event, EVENT_ID, getScalarValue, parseEvents, SCALAR_STYLE, type ScalarEvent, YAMLException } from "js-yaml";

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

/** The events of a document as numbers. */
class PackedEvents {
  #numbers = new Int32Array(STRIDE * 1024);
  #count = 0;
  /** The collections that have not ended. */
  readonly #open: number[] = [];

  /**
   * @param base offset of their text in the whole one
   * @throws {YamlError} for a second document, and for a tag
   */
  add(events: readonly Event[], base: number): void {
    const needed = (this.#count + events.length) * STRIDE;
    if (needed > this.#numbers.length) {
      const grown = new Int32Array(Math.max(needed, 2 * this.#numbers.length));
      grown.set(this.#numbers);
      this.#numbers = grown;
    }
    for (let i = 0; i < events.length; i++) {
      const event = events[i] as AnyEvent;
      if (event.type === EVENT_ID.DOCUMENT && this.#count > 0) {
        const { start = 0, valueStart = start } = events[i + 1] as AnyEvent;
        throw new YamlError(base + Math.max(0, valueStart), "it has more than one document");
      }
      this.#add(event, base);
    }
  }

  #add(event: AnyEvent, base: number): void {
    const [numbers, node] = [this.#numbers, this.#count++];
    const at = node * STRIDE;
    const { type, tagStart = -1 } = event;
    if (tagStart >= 0) throw new YamlError(base + tagStart, "a tag, which begins with !, has no meaning here");
    numbers[at] = type;
    numbers[at + 1] = -1;
    if (type === EVENT_ID.POP) {
      numbers[this.#open.pop()! * STRIDE + 2] = node + 1;
    } else if (type === EVENT_ID.SCALAR) {
      numbers[at] = type | (event.style << 4) | (event.chomping << 8) | (Number(event.fast) << 12);
      if (event.valueStart! >= 0) numbers[at + 1] = base + event.valueStart!;
      numbers[at + 2] = base + event.valueEnd;
      numbers[at + 3] = event.indent;
    } else if (type === EVENT_ID.ALIAS) {
      numbers[at + 1] = base + event.anchorStart;
      numbers[at + 2] = base + event.anchorEnd;
    } else {
      this.#open.push(node);
      if (event.start !== undefined) numbers[at + 1] = base + event.start;
    }
  }

  take(): Int32Array {
    return this.#numbers.subarray(0, this.#count * STRIDE);
  }
}

/** Fields of events of all types; `type` says which there are. */
type AnyEvent = Omit<ScalarEvent, "type" | "tagStart" | "valueStart"> & {
  readonly type: number;
  readonly start?: number;
  readonly valueStart?: number;
  readonly tagStart?: number;
};

/** Texts that are longer are parsed in parts, which are a little longer than this, in characters. */
const LARGE = 256 * 1024;
const PART = 32 * 1024;

/** A list in a text. */
interface LongList {
  /** Where its first item begins, with its indentation, and where the list ends. */
  readonly start: number;
  readonly end: number;
  /** How each item begins: the indentation, a hyphen and a space. */
  readonly hyphen: string;
}

/**
 * Finds the list of the key, which begins its line. Each line within an item is indented by more than the item (YAML 1.2.2 §8.2.1), so a line
 * that begins like an item is one.
 */
function findList(text: string, key: string): LongList | undefined {
  const found = new RegExp(`^${key}:[ \\t]*\\r?\\n( *- )`, "m").exec(text);
  if (found === null) return undefined;
  const hyphen = found[1]!;
  const start = found.index + found[0].length - hyphen.length;
  const next = hyphen === "- " ? /^[^ \t\r\n#-]/mg : /^[^ \t\r\n#]/mg;
  next.lastIndex = start;
  return { start, end: next.exec(text)?.index ?? text.length, hyphen };
}

/** @throws {YamlError} */
function parseAt(text: string, positionOf: (position: number) => number): Event[] {
  try {
    return parseEvents(text, {});
  } catch (cause) {
    if (!(cause instanceof YAMLException)) throw cause;
    throw new YamlError(positionOf(cause.mark?.position ?? 0), cause.reason, { cause });
  }
}

/** A document whose root is a mapping, or is empty. */
export class YamlDocument {
  readonly #text: string;
  readonly #events: Int32Array;
  /** A line, and the offset at which it begins: lines are asked for in about their order. */
  #line = { number: 1, start: 0 };
  /** The root, if the document has a mapping. */
  readonly root: YamlNode | undefined;

  /**
   * Yields after each part of a large text.
   * @param key of the mapping at the root, whose list may be long
   * @throws {YamlError}
   */
  static *parse(text: string, key: string): Generator<void, YamlDocument> {
    const packed = new PackedEvents();
    const list = text.length > LARGE ? findList(text, key) : undefined;
    if (list === undefined || !(yield* parseInParts(text, list, packed))) packed.add(parseAt(text, (position) => position), 0);
    return new YamlDocument(text, packed.take());
  }

  private constructor(text: string, events: Int32Array) {
    this.#text = text;
    this.#events = events;
    this.root = events.length > 0 && this.kindOf(1) === "map" ? 1 : undefined;
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

/** Returns `false` if the list is none. */
function* parseInParts(text: string, { start, end, hyphen }: LongList, packed: PackedEvents): Generator<void, boolean> {
  // the document without the list's items, with one in their place
  const item = `${hyphen}0\n`;
  const removed = end - start - item.length;
  const frame = parseAt(text.slice(0, start) + item + text.slice(end), (position) => position < start ? position : position + removed);
  const at = frame.findIndex((event) => event.type === EVENT_ID.SCALAR && event.valueStart === start + hyphen.length);
  if (frame[at - 1]?.type !== EVENT_ID.SEQUENCE || frame[at + 1]?.type !== EVENT_ID.POP) return false;
  packed.add(frame.slice(0, at), 0);
  for (let from = start, to; from < end; from = to) {
    const next = text.indexOf(`\n${hyphen}`, from + PART);
    to = next < 0 || next >= end ? end : next + 1;
    const base = from;
    // without the document and the list, which each part begins and ends
    packed.add(parseAt(text.slice(from, to), (position) => base + position).slice(2, -2), base);
    yield;
  }
  packed.add(frame.slice(at + 1), removed);
  return true;
}

const NULL = /^(?:null|Null|NULL|~|)$/;
