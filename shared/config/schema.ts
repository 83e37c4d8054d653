// Generates the JSON Schema of the configuration file from the option definitions, for completion and validation in editors.
import { isRequired, type Option, type Options, type RecordKey } from "./option.ts";

interface Group {
  type: "object";
  additionalProperties: false;
  properties: Record<string, Group | Leaf>;
}
type Leaf = Readonly<Record<string, unknown>>;

/** The schema of one file for all services in `family`. It does not check addresses, patterns and files. */
export function configSchema(family: Readonly<Record<string, Options>>): object {
  const root = group();
  for (const options of Object.values(family)) {
    for (const [name, option] of Object.entries(options)) {
      const keys = name.split(".");
      const last = keys.pop()!;
      let at = root;
      for (const key of keys) at = (at.properties[key] ??= group()) as Group;
      at.properties[last] = leaf(option, at.properties[last] as Leaf | undefined);
    }
  }
  return { $schema: "http://json-schema.org/draft-07/schema#", title: "Configuration of reverse-http", ...root };
}

function group(): Group {
  return { type: "object", additionalProperties: false, properties: {} };
}

/** The schema of an option; `other` is that of another service's option of the same name. */
function leaf(option: Option, other: Leaf | undefined): Leaf {
  const { kind, choices, default: value, description } = option;
  if (option.kind === "records") return { description, anyOf: [{ type: "string" }, { type: "array", items: recordSchema(option.keys) }] };
  const all = choices && [...new Set([...(other?.enum as string[] | undefined) ?? [], ...choices])];
  return { description: other?.description ?? description, default: value, ...all ? { enum: all } : TYPES[kind as keyof typeof TYPES] };
}

function recordSchema(keys: Readonly<Record<string, RecordKey>>): Leaf {
  const required = Object.entries(keys).filter(([, key]) => isRequired(key)).map(([name]) => name);
  return { ...group(), properties: Object.fromEntries(Object.entries(keys).map(([name, key]) => [name, leaf(key, undefined)])), required };
}

const SCALAR = { type: ["string", "number"] };
const TYPES: Readonly<Record<Exclude<Option["kind"], "records">, Leaf>> = {
  string: SCALAR,
  file: { type: "string" },
  address: { type: "string" },
  duration: { type: "string", pattern: "^\\+?(0|((\\d+\\.?\\d*|\\.\\d+)(ns|us|µs|μs|ms|s|m|h|d))+)$" },
  boolean: { type: "boolean" },
  integer: { type: "integer", minimum: 0 },
  list: { anyOf: [{ type: "string" }, { type: "array", items: SCALAR }] },
};
