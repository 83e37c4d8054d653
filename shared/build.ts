// The commit and date of the build. The build of the executables replaces this file.

/**
 * Commit, with `-dirty` where there were changes beside it, and its date (RFC 3339); platform as in the names of archives, `linux_amd64` or
 * `linux_amd64_musl`.
 */
export const BUILD: Readonly<Record<"commit" | "date" | "platform", string>> = { commit: "unknown", date: "unknown", platform: "unknown" };
