// The dashboard in Chromium: what it shows, sends and does, with a server of 10,000 agents and tunnels, and with the compiled proxy.
/// <reference lib="dom" />
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { type Browser, chromium, type Page } from "playwright-core";
import { FakeAdmin, HOSTILE, OPERATOR, VIEWER } from "../../testing/admin_api.ts";
import { CHROMIUM } from "../../testing/chromium.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { AGENT_ID, Site } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { bundleDashboard } from "../../tools/dashboard.ts";

const missing = CHROMIUM === undefined && "chromium is not installed: tools/requirements.ts installs it";
const MANY = 10_000;

let browser: Browser;
let files: Awaited<ReturnType<typeof bundleDashboard>>;

before(async () => {
  if (missing) return;
  [browser, files] = await Promise.all([chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] }), bundleDashboard()]);
});

after(() => browser?.close());

/** A test in a browser. It fails where CI has none, and is skipped on a developer's machine. */
function itBrowses(name: string, test: () => Promise<void>): void {
  if (missing && process.env.CI && process.platform === "linux") it(name, () => assert.fail(missing));
  else it(name, { skip: missing }, test);
}

/** A page that is signed in, and what its console reported. */
async function open(
  { url }: { readonly url: string },
  fragment: string,
  options: Parameters<Browser["newPage"]>[0] = {},
  token = OPERATOR,
) {
  const page = await browser.newPage(options);
  const problems: string[] = [];
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(`${url}${fragment}`);
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("navigation").waitFor();
  return { page, problems };
}

const cellsOf = (page: Page, column: number) => page.locator(`tbody tr:not(.spacer) td:nth-child(${column})`).allInnerTexts();

/** Resolves when the first cell of the table has this text. */
async function firstCell(page: Page, text: string): Promise<void> {
  await page.locator("tbody tr:not(.spacer) td").first().filter({ hasText: text }).waitFor();
}

/** Tells the page that its tab is hidden, or visible again. */
async function setHidden(page: Page, hidden: boolean): Promise<void> {
  await page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
}

describe("the dashboard", () => {
  itBrowses("searches, sorts and scrolls 10,000 tunnels, and loads and draws only those in view", async () => {
    await using fake = await FakeAdmin.start({ agents: MANY, tunnels: MANY, files });
    const { page, problems } = await open(fake, "#/tunnels?sort=-bytes");
    await firstCell(page, "git399.internal");
    assert.ok(await page.locator("tbody tr").count() < 80);
    await page.getByRole("region", { name: "Tunnels" }).evaluate((box) => box.scrollTo(0, box.scrollHeight));
    await page.locator(`tr[aria-rowindex="${MANY + 1}"] a`).first().waitFor();
    assert.ok(await page.locator("tbody tr").count() < 80);
    await page.getByRole("button", { name: "Destination" }).click();
    await firstCell(page, "<img src=x");
    await page.keyboard.press("/");
    await page.keyboard.type("db8.");
    await firstCell(page, "db8.internal:5432");
    assert.equal(await page.locator(".total").innerText(), "25");
    assert.ok((await cellsOf(page, 1)).every((text) => text.startsWith("db8.internal")));
    assert.ok(fake.largest < 50_000, `a response has ${fake.largest} bytes`);
    assert.ok(
      fake.requests.every((request) => !request.includes("/tunnels?") || /&limit=\d{2}(&|$)/.test(request)),
      fake.requests.join("\n"),
    );
    assert.deepEqual(problems, []);
    await page.close();
  });

  itBrowses("shows names from agents and clients as text", async () => {
    await using fake = await FakeAdmin.start({ agents: 3, tunnels: 3, files });
    const { page, problems } = await open(fake, "#/agents");
    const shown = HOSTILE.replace("\u202e", "\\u202e");
    for (const view of ["#/agents", `#/agents/${encodeURIComponent(HOSTILE)}`, "#/tunnels", "#/tunnels/t1", "#/failures"]) {
      await page.goto(`${fake.url}${view}`);
      await page.getByText(shown, { exact: true }).first().waitFor();
      assert.equal(await page.locator("main img, main script").count(), 0);
    }
    assert.doesNotMatch(await page.title(), /owned/);
    assert.deepEqual(problems, []);
    await page.close();
  });

  itBrowses("makes no HTML of text, and asks no other server, even if its code would", async () => {
    await using fake = await FakeAdmin.start({ agents: 1, tunnels: 1, files });
    await using other = await FakeAdmin.start({ agents: 1, tunnels: 1, files });
    const { page, problems } = await open(fake, "");
    assert.equal(await page.evaluate(insertHtml, HOSTILE), "TypeError");
    assert.equal(await page.evaluate(request, other.url), "TypeError");
    assert.deepEqual(other.requests, []);
    for (const cause of ["TrustedHTML", "connect-src 'self'"]) {
      assert.ok(problems.some((problem) => problem.includes(cause)), problems.join("\n"));
    }
    await page.close();
  });

  itBrowses("sends nothing while it is hidden, and loads when it is visible again", async () => {
    await using fake = await FakeAdmin.start({ agents: MANY, tunnels: MANY, files });
    const { page } = await open(fake, "#/tunnels");
    await firstCell(page, ".internal");
    await page.clock.install();
    await setHidden(page, true);
    const before = fake.requests.length;
    await page.clock.runFor(600_000);
    assert.deepEqual(fake.requests.slice(before), []);
    const paths = ["/api/v1/status", "/api/v1/tunnels"];
    const answers = paths.map((path) => page.waitForResponse((response) => response.url().includes(path)));
    await setHidden(page, false);
    await Promise.all(answers);
    await page.close();
  });

  itBrowses("closes a tunnel after a confirmation", async () => {
    await using fake = await FakeAdmin.start({ agents: 10, tunnels: 10, files });
    const { page } = await open(fake, "#/tunnels/t4");
    await page.getByRole("button", { name: "Close the tunnel…" }).click();
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.deepEqual(fake.actions, []);
    await page.keyboard.press("Enter"); // the focus is on the button again
    await page.getByRole("dialog").getByRole("button", { name: "Close the tunnel" }).click();
    await page.getByText("closed by an operator").waitFor();
    assert.deepEqual(fake.actions, [{ path: "tunnels/close", body: { id: "t4" } }]);
    await page.close();
  });

  itBrowses("offers a viewer no action, and asks for another token when one is refused", async () => {
    await using fake = await FakeAdmin.start({ agents: 10, tunnels: 10, files });
    const { page } = await open(fake, "#/tunnels/t4", {}, VIEWER);
    await page.getByText("It is open.").waitFor();
    assert.equal(await page.getByRole("button", { name: "Close the tunnel" }).count(), 0);
    await page.getByRole("button", { name: "Sign out" }).click();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("alert").filter({ hasText: "The token is not accepted" }).waitFor();
    await page.close();
  });

  itBrowses("shows which tokens end soon, which options differ from the defaults, and the processes before a hand-over", async () => {
    await using fake = await FakeAdmin.start({ agents: 10, tunnels: 10, files });
    const { page, problems } = await open(fake, "#/agents");
    for (const view of ["agents", "tunnels"]) {
      await page.goto(`${fake.url}#/${view}`);
      const asked = page.waitForRequest((request) => request.url().includes(`/${view}?`) && request.url().includes("expires=604800"));
      await page.getByLabel("Tokens").selectOption("Expiring within a week");
      await asked;
    }
    await page.getByRole("link", { name: "Service" }).click();
    await page.getByRole("row", { name: "log.level debug info /etc/reverse-http/config.yaml:3" }).waitFor();
    await page.getByText("processes that finish what is open: 1713").waitFor();
    assert.deepEqual(problems, []);
    await page.close();
  });

  itBrowses("works below a path, and asks no other server", async () => {
    await using fake = await FakeAdmin.start({ agents: 10, tunnels: 10, files, prefix: "/ops/edge-1" });
    const page = await browser.newPage();
    const origins = new Set<string>();
    page.on("request", (request) => !request.url().startsWith("data:") && origins.add(new URL(request.url()).origin));
    await page.goto(fake.url);
    await page.getByLabel("Token").fill(OPERATOR);
    await page.keyboard.press("Enter");
    await page.getByRole("link", { name: "Agents 10" }).click();
    await firstCell(page, "<img");
    assert.deepEqual([...origins], [new URL(fake.url).origin]);
    await page.close();
  });

  for (const [theme, width] of [["light", 1280], ["dark", 390]] as const) {
    itBrowses(`is accessible and fits: ${theme}, ${width} pixels`, async () => {
      await using fake = await FakeAdmin.start({ agents: 200, tunnels: 200, files });
      const { page } = await open(fake, "", { colorScheme: theme, viewport: { width, height: 844 } });
      await page.evaluate(readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8"));
      const check = async (view: string) => {
        assert.deepEqual(await page.evaluate(findViolations), [], view);
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${view} is wider than the screen`);
      };
      for (const view of ["#/", "#/agents", "#/agents/clinic-1001", "#/tunnels", "#/tunnels/t4", "#/failures", "#/service"]) {
        await page.evaluate((view) => location.hash = view, view);
        await page.locator("main td, main dl, main canvas").first().waitFor();
        if (view === "#/") await page.getByText("others").waitFor(); // the graph of causes
        await check(view);
      }
      await page.getByRole("button", { name: "Drain and stop…" }).click();
      await page.getByRole("dialog").waitFor();
      await check("a dialog");
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Sign out" }).click();
      await check("the login");
      await page.close();
    });
  }
});

describe("the dashboard of a proxy", () => {
  itBrowses("shows its agent and its tunnel, and closes the tunnel", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const tokens = join(site.folder.path, "admin-tokens");
    writeFileSync(tokens, `operator anna ${OPERATOR}\n`, { mode: 0o600 });
    const { proxy, addresses } = await site.startProxy(["--admin.listen-address=:0", `--admin.token-file=${tokens}`]);
    await site.startAgent(addresses);
    using client = await openTunnel(addresses.clients, origin.authority);
    using server = await origin.accept();
    await client.write("ping");
    await server.read(4);
    const { page, problems } = await open({ url: `http://${(await proxy.waitFor("listening")).admin}/` }, "#/agents");
    await page.getByRole("link", { name: AGENT_ID, exact: true }).click();
    await page.getByRole("heading", { name: `Agent ${AGENT_ID}` }).waitFor();
    await page.getByRole("link", { name: origin.authority }).click();
    await page.getByText("It is open.").waitFor();
    await page.getByRole("button", { name: "Close the tunnel…" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Close the tunnel" }).click();
    assert.deepEqual(await Promise.all([client.ending(), server.ending()]), ["ECONNRESET", "ECONNRESET"]);
    await page.getByText("It failed").waitFor();
    assert.deepEqual(problems, []);
    await page.close();
  });
});

describe("the dashboard of a proxy with an identity provider", () => {
  itBrowses("signs a person in and out, without a token in the page", async () => {
    await using issuer = await OidcIssuer.start();
    await using site = await Site.create();
    const address = await freeAddress();
    const url = `http://${address}/`;
    const { proxy } = await site.startProxy([
      `--admin.listen-address=${address}`,
      `--admin.oidc.issuer=${issuer.url}`,
      "--admin.oidc.client-id=dashboard",
      `--admin.oidc.url=${url}`,
      "--admin.oidc.operators=ops",
    ]);
    const page = await browser.newPage();
    await page.goto(url);
    await page.getByRole("link", { name: "Sign in with" }).click();
    await page.getByRole("navigation").waitFor();
    await proxy.waitFor("operator signed in", { by: "alice", role: "operator" });
    assert.equal(await page.evaluate(() => document.cookie + sessionStorage.length), "0");
    await page.getByRole("link", { name: "Service" }).click();
    await page.getByRole("button", { name: "Reload the files…" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Reload the files" }).click();
    await proxy.waitFor("operator action", { by: "alice", subject: "u-1", action: "reload" });
    await page.reload();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("link", { name: "Sign in with" }).waitFor();
    await page.reload();
    await page.getByRole("link", { name: "Sign in with" }).waitFor();
    await page.close();
  });
});

/** In the browser: the error when text becomes HTML. */
function insertHtml(html: string): string | undefined {
  try {
    document.body.innerHTML = html;
  } catch (error) {
    return (error as Error).name;
  }
}

/** In the browser: the error of a request. */
async function request(url: string): Promise<string | undefined> {
  try {
    await fetch(url, { mode: "no-cors" });
  } catch (error) {
    return (error as Error).name;
  }
}

/** In the browser: what axe-core finds. */
async function findViolations(): Promise<string[]> {
  interface Result {
    readonly violations: readonly {
      readonly id: string;
      readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
    }[];
  }
  const { axe } = globalThis as unknown as { axe: { run(): Promise<Result> } };
  const { violations } = await axe.run();
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => `${id}: ${html}\n${failureSummary}`));
}
