// Loads the X.509 library on demand, because loading it takes longer than the rest of the start.

/** Imports `@peculiar/x509`, after the polyfill that it requires. */
export async function loadX509(): Promise<typeof import("@peculiar/x509")> {
  await import("reflect-metadata");
  return await import("@peculiar/x509");
}
