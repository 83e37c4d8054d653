// The dashboard's files, over HTTP. They contain no data: the page gets it from the admin API, with the token that the user enters.
import { type DashboardFile, readDashboardFile } from "./files.ts";

/** The files by path, relative to the page: it works below any path behind another proxy. */
const PATHS: Readonly<Record<string, readonly [file: DashboardFile, type: string]>> = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/dashboard/app.js": ["app.js", "text/javascript; charset=utf-8"],
  "/dashboard/style.css": ["style.css", "text/css; charset=utf-8"],
};

/** Names from agents and clients are shown as text. Should one become HTML nevertheless, none of it runs or loads anything. */
const HEADERS = {
  "Content-Security-Policy": [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join("; "),
  "Cache-Control": "no-store",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
};

/**
 * The file at `path`, which begins with `/`; `undefined` if there is none.
 * @param read Default: the files of this executable or installation
 */
export function serveDashboard(path: string, read = readDashboardFile): Response | undefined {
  const entry = Object.hasOwn(PATHS, path) ? PATHS[path] : undefined;
  if (entry === undefined) return undefined;
  const [file, type] = entry;
  const content = read(file);
  if (content === undefined) {
    return new Response("The dashboard is not built: run deno task dashboard\n", {
      status: 503,
      headers: { ...HEADERS, "Content-Type": "text/plain" },
    });
  }
  return new Response(content, { headers: { ...HEADERS, "Content-Type": type } });
}
