// The dashboard's parts that need no browser, and the headers of its files.
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { bytes, duration, milliseconds, percent, rate, visible } from "../../dashboard/format.ts";
import { poll } from "../../dashboard/poll.ts";
import { href, parseRoute } from "../../dashboard/route.ts";
import { rowsAround, within } from "../../dashboard/rows.ts";
import { append, causeLines, columns, isolated, perSecond } from "../../dashboard/series.ts";
import type { FailureError } from "../../shared/service/api/types.ts";
import { serveDashboard } from "../../shared/service/dashboard/dashboard.ts";

const ROOT = join(import.meta.dirname!, "..", "..");

describe("the dashboard's text", () => {
  it("has numbers with three digits at most, and units", () => {
    assert.deepEqual([0, 999, 1_000, 12_345, 999_499, 999_500, 2.5e12].map(bytes), [
      "0 B",
      "999 B",
      "1.0 kB",
      "12 kB",
      "999 kB",
      "1.0 MB",
      "2.5 TB",
    ]);
    assert.deepEqual([rate(undefined), rate(1_500)], ["–", "1.5 kB/s"]);
    assert.deepEqual([undefined, 0.25, 12, 12.34, 123.4, 2_000].map(milliseconds), ["–", "250 µs", "12 ms", "12.3 ms", "123 ms", "2 s"]);
    assert.deepEqual([undefined, 0, 0.0123, 0.5].map(percent), ["–", "0 %", "1.23 %", "50.0 %"]);
  });

  it("has the two largest units of a duration", () => {
    const durations = [-5, 900, 59_900, 61_000, 3_600_000, 3_600_000 * 26 + 60_000, 86_400_000 * 3 + 5_000, 1_830_000];
    assert.deepEqual(durations.map(duration), ["0 s", "0.9 s", "59 s", "1 min 1 s", "1 h", "1 d 2 h", "3 d", "30 min"]);
  });

  it("shows characters that hide or reorder others", () => {
    assert.equal(visible("a\u202eb\u200b\u001b[2J\n"), "a\\u202eb\\u200b\\u001b[2J\\u000a");
    assert.equal(visible("<b>ä 漢</b>"), "<b>ä 漢</b>");
  });
});

describe("the dashboard's fragments", () => {
  it("name views, with any text in them", () => {
    const id = "a/b?c#d%e ü";
    const fragment = href(["agents", id], { q: "x&y=z", sort: "" });
    const { path, query } = parseRoute(fragment);
    assert.deepEqual([path, [...query]], [["agents", id], [["q", "x&y=z"]]]);
    assert.deepEqual(parseRoute("").path, []);
    assert.deepEqual(parseRoute("#/agents/%zz").path, ["agents", "%zz"]);
  });
});

describe("the dashboard's tables", () => {
  it("draw the rows in view and a few around them", () => {
    assert.deepEqual(rowsAround(0, 600, 36), { first: 0, end: 30 });
    assert.deepEqual(rowsAround(-20, 600, 36), { first: 0, end: 30 });
    assert.deepEqual(rowsAround(36_000, 600, 36), { first: 990, end: 1_030 });
    assert.deepEqual(within({ first: 990, end: 1_030 }, 1_000), { first: 990, end: 1_000 });
    assert.deepEqual(within({ first: 990, end: 1_030 }, 10), { first: 10, end: 10 });
  });
});

describe("the dashboard's graphs", () => {
  it("have a gap where nothing was measured", () => {
    const points = [1_000, 3_000, 20_000].map((time, i) => ({ time, values: [i, undefined] }));
    assert.deepEqual(columns(points, 2, 7_000), [[1, 3, 11.5, 20], [0, 1, null, 2], [null, null, null, null]]);
  });

  it("have a line for each of the most frequent causes of failures, and one for the others", () => {
    const minutes = ["2026-01-01T00:00:00.000Z", "2026-01-01T00:01:00.000Z"];
    const cause = (error: FailureError, counts: number[]) => ({ kind: "refused" as const, error, counts });
    assert.deepEqual(causeLines({ minutes, causes: [cause("dns_error", [1, 2])] }), {
      names: ["dns error, refused"],
      data: [minutes.map((minute) => Date.parse(minute) / 1_000), [1, 2]],
    });
    const six = Array.from({ length: 6 }, () => cause("dns_timeout", [1, 0]));
    assert.equal(causeLines({ minutes, causes: six }).names.includes("others"), false);
    const { names, data } = causeLines({ minutes, causes: [...six, cause("dns_error", [0, 4])] });
    assert.deepEqual([names.length, names.at(-1), data.at(-1)], [6, "others", [1, 4]]);
  });

  it("show a value between gaps as a point", () => {
    assert.deepEqual(isolated([1, null, 2, 3, null, 4, null]), [0, 5]);
    assert.deepEqual(isolated([5]), [0]);
  });

  it("start over when the clock is set back, and keep a number of points", () => {
    const timeOf = (time: number) => time;
    assert.deepEqual(append([1, 2, 3], 4, timeOf, 3), [2, 3, 4]);
    assert.deepEqual(append([1, 2], 2, timeOf, 3), [1, 2]);
    assert.deepEqual(append([5, 6], 2, timeOf, 3), [2]);
  });

  it("have no negative rate after a restart", () => {
    assert.equal(perSecond(10, 30, 2_000), 10);
    assert.equal(perSecond(30, 10, 2_000), undefined);
    assert.equal(perSecond(10, 30, 0), undefined);
  });
});

/** A page that is visible or not. */
class Tab extends EventTarget {
  hidden = false;

  set(hidden: boolean): void {
    this.hidden = hidden;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

describe("the dashboard's polling", () => {
  it("aborts when the page is hidden, and loads when it is visible again", async () => {
    const tab = new Tab();
    const signals: AbortSignal[] = [];
    const stop = poll(
      (signal) => {
        signals.push(signal);
        return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      },
      0,
      tab,
    );
    assert.equal(signals.length, 1);
    tab.set(true);
    assert.ok(signals[0]!.aborted);
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(signals.length, 1);
    tab.set(false);
    assert.equal(signals.length, 2);
    stop();
    assert.ok(signals[1]!.aborted);
    tab.set(false);
    assert.equal(signals.length, 2);
  });

  it("goes on after an error, until it is stopped", async () => {
    const tab = new Tab();
    let times = 0;
    await new Promise<void>((resolve) => {
      const stop = poll(
        () => {
          if (++times < 3) return Promise.reject(new Error("no connection"));
          stop();
          resolve();
          return Promise.resolve();
        },
        0,
        tab,
      );
    });
    assert.equal(times, 3);
  });
});

describe("the dashboard's files", () => {
  it("are served with types, and with a policy that runs nothing inline", async () => {
    for (
      const [path, type] of [["/", "text/html"], ["/dashboard/app.js", "text/javascript"], ["/dashboard/style.css", "text/css"]] as const
    ) {
      const response = serveDashboard(path, (name) => `content of ${name}`)!;
      assert.equal(response.headers.get("content-type"), `${type}; charset=utf-8`);
      assert.match(await response.text(), /^content of /);
      assert.equal(response.headers.get("x-content-type-options"), "nosniff");
      const policy = response.headers.get("content-security-policy")!;
      assert.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;/);
      assert.match(policy, /frame-ancestors 'none'/);
      assert.doesNotMatch(policy, /unsafe|http/);
    }
    for (const path of ["/dashboard", "/dashboard/../main.ts", "/constructor", "/index.html"]) {
      assert.equal(serveDashboard(path), undefined);
    }
  });

  it("say how they are built where they are not", async () => {
    const response = serveDashboard("/", () => undefined)!;
    assert.equal(response.status, 503);
    assert.match(await response.text(), /deno task dashboard/);
  });

  it("have relative URLs, and nothing inline", () => {
    const html = readFileSync(join(ROOT, "dashboard", "index.html"), "utf8");
    const urls = [...html.matchAll(/\b(?:src|href)="([^"]*)"/g)].map((match) => match[1]!);
    assert.deepEqual(urls.filter((url) => !url.startsWith("data:")), ["dashboard/style.css", "dashboard/app.js"]);
    assert.doesNotMatch(html, /<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)/);
  });

  it("import nothing of the product but types", () => {
    for (const file of globSync("dashboard/*.{ts,tsx}", { cwd: ROOT })) {
      const imports = readFileSync(join(ROOT, file), "utf8").matchAll(/^(?:import|export)\s+(type\b)?[^;]*?from "(\.\.[^"]*)"/gm);
      for (const [, type, from] of imports) assert.ok(type && from === "../shared/service/api/types.ts", `${file} imports ${from}`);
    }
  });
});
