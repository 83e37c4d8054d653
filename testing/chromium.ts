// Where Chromium is installed: by a distribution, or as CI links it.
import { existsSync } from "node:fs";

/** Its path; `undefined` if there is none. tools/requirements.ts installs it. */
export const CHROMIUM = ["/usr/bin/chromium", "/usr/local/bin/chromium"].find((path) => existsSync(path));
