// What this was built of. The executables' build puts the facts in the place of this file.

/** Commit, with `-dirty` where there were changes beside it, and its date (RFC 3339). */
export const BUILD: { readonly commit: string; readonly date: string } = { commit: "unknown", date: "unknown" };
