// Bandwidths, as options and policies write them.

const UNITS = { "": 1, KiB: 1 << 10, MiB: 1 << 20, GiB: 1 << 30 };
const BANDWIDTH = /^([0-9]{1,12})(KiB|MiB|GiB)?$/;

/** Returns why a text is no bandwidth, or `undefined`. */
export function checkBandwidth(text: string): string | undefined {
  return BANDWIDTH.test(text) ? undefined : `${JSON.stringify(text)} is not like 500000, 512KiB, 10MiB or 1GiB, or 0`;
}

/** The bytes per second of a text that {@link checkBandwidth} accepts. */
export function parseBandwidth(text: string): number {
  const [, number, unit] = BANDWIDTH.exec(text) ?? [];
  return Number(number ?? 0) * UNITS[(unit ?? "") as keyof typeof UNITS];
}
