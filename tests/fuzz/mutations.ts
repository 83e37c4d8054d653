// Mutations of valid texts and bytes for all fuzzers, independent of their meaning.
import fc from "fast-check";

type Edit = [kind: number, at: number, length: number, piece: number];

function apply(text: string, [kind, at, length, piece]: Edit, pieces: readonly string[]): string {
  const start = at % (text.length + 1);
  switch (kind) {
    case 0: // insert
      return text.slice(0, start) + pieces[piece]! + text.slice(start);
    case 1: // replace
      return text.slice(0, start) + pieces[piece]! + text.slice(start + length);
    case 2: // remove
      return text.slice(0, start) + text.slice(start + length);
    case 3: // repeat
      return text.slice(0, start + length * 8) + text.slice(start);
    case 4: { // a piece as a line of its own
      const lines = text.split("\r\n");
      lines.splice(1 + at % lines.length, 0, pieces[piece]!.replace(/\r\n$/, ""));
      return lines.join("\r\n");
    }
    case 5: { // two lines change places
      const lines = text.split("\r\n");
      const [i, j] = [at % lines.length, (at + length) % lines.length];
      [lines[i], lines[j]] = [lines[j]!, lines[i]!];
      return lines.join("\r\n");
    }
    default: // another byte
      return text.slice(0, start) + String.fromCharCode((length * 64 + piece) % 256) + text.slice(start + 1);
  }
}

/** One of `good`, one character per byte, mutated with `pieces` up to four times. */
export function mutations(good: readonly string[], pieces: readonly string[]): fc.Arbitrary<string> {
  const edit = fc.tuple(fc.nat(6), fc.nat(400), fc.nat(3), fc.nat(pieces.length - 1)) as fc.Arbitrary<Edit>;
  return fc.tuple(fc.nat(good.length - 1), fc.array(edit, { maxLength: 4, size: "max" })).map(([chosen, edits]) =>
    edits.reduce((text, each) => apply(text, each, pieces), good[chosen]!)
  );
}

/** `bytes` in parts: sometimes split at every byte, mostly at a few. */
export function parts(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...at].map((start, i) => bytes.subarray(start, at[i] ?? bytes.length)).filter((part) => part.length > 0);
}
