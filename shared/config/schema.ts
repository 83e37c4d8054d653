// Generates the JSON Schema of the configuration file from the option definitions, for completion and validation in editors.
import type { Option, Options } from "./option.ts";

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
function leaf({ kind, choices, default: value, description }: Option, other: Leaf | undefined): Leaf {
  const all = choices && [...new Set([...(other?.enum as string[] | undefined) ?? [], ...choices])];
  return { description: other?.description ?? description, default: value, ...all ? { enum: all } : TYPES[kind] };
}

const SCALAR = { type: ["string", "number"] };
const TYPES: Readonly<Record<Option["kind"], Leaf>> = {
  string: SCALAR,
  file: { type: "string" },
  address: { type: "string" },
  duration: { type: "string", pattern: "^\\+?(0|((\\d+\\.?\\d*|\\.\\d+)(ns|us|µs|μs|ms|s|m|h|d))+)$" },
  boolean: { type: "boolean" },
  integer: { type: "integer", minimum: 0 },
  list: { anyOf: [{ type: "string" }, { type: "array", items: SCALAR }] },
};
