// QR codes on a terminal.
import type { Terminal } from "./command.ts";

/** Most bytes in a QR code (ISO/IEC 18004, version 40 with correction level L). */
const MAX_QR = 2_953;

/** Prints a QR code if it fits, or says why not. */
export async function printQrCode(
  text: string,
  { write, report, columns = 0 }: Pick<Terminal, "write" | "report" | "columns">,
): Promise<void> {
  if (text.length > MAX_QR) return report("it is too long for a QR code");
  const { renderUnicodeCompact } = await import("uqr"); // most runs need none
  const code = renderUnicodeCompact(text, { ecc: "L", border: 1 });
  const width = code.split("\n")[0]!.length;
  if (width <= columns) write(`\n${code}\n`);
  else report(`its QR code needs a terminal with ${width} columns`);
}
