// Headless Chromium for the tests: a page of a report that fails the test on any error in the console.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const OUT = fileURLToPath(new URL("out/", import.meta.url));
mkdirSync(OUT, { recursive: true });
const ARGS =
  "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --use-angle=swiftshader " +
  "--disable-background-networking --disable-component-update --disable-sync --no-first-run";

export async function launch(...more) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({ executablePath, args: [...ARGS.split(" "), ...more] });
}

/** Open a report and wait until the explorer answers; `errors` gathers what must not be. */
export async function open(browser, path, { width = 1440, height = 1000, ...options } = {}) {
  const page = await browser.newPage({ viewport: { width, height }, ...options });
  const errors = [];
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) errors.push(`asked for ${request.url()}`);
  });
  await page.goto(`file://${path}`);
  await page.waitForSelector("#ex-explored[data-ready]", { state: "attached", timeout: 60_000 });
  return { page, errors };
}

/** Wait until the what-if has its intervals. */
export async function answered(page) {
  await page.waitForFunction(() => {
    const result = document.getElementById("ex-result");
    return !result.hidden && result.dataset.done && !document.getElementById("ex-genes").textContent.includes("…");
  });
}

export function none(errors) {
  assert.deepEqual(errors, []);
}
