// The version of this release.

/** As in deno.json. */
export const VERSION = "0.1.0";
