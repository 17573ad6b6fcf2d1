// Pages of a report in headless Chromium and Firefox. A page fails the test on any error in the console.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

export const OUT = fileURLToPath(new URL("out/", import.meta.url));
mkdirSync(OUT, { recursive: true });
const NAME = process.env.BROWSER ?? "chromium"; // or firefox
const PATHS = {
  chromium: process.env.CHROMIUM ?? "/usr/bin/chromium",
  firefox: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
};
const ARGS =
  "--no-sandbox --disable-dev-shm-usage --disable-gpu --enable-unsafe-swiftshader --use-angle=swiftshader " +
  "--disable-background-networking --disable-component-update --disable-sync --no-first-run";

/** Start a browser. Chromium is asked for colours and motion page by page, Firefox once, by a preference. */
export async function launch({ name = NAME, dark = false, still = false } = {}) {
  const downloads = mkdtempSync(`${OUT}downloads-`);
  const browser = await puppeteer.launch({
    browser: name === "firefox" ? "firefox" : "chrome",
    executablePath: PATHS[name],
    args: name === "firefox" ? [] : ARGS.split(" "),
    downloadBehavior: name === "firefox" ? undefined : { policy: "allow", downloadPath: downloads },
    extraPrefsFirefox: {
      "browser.download.folderList": 2,
      "browser.download.dir": downloads,
      "browser.download.alwaysOpenPanel": false, // which takes the focus
      "layout.css.prefers-color-scheme.content-override": dark ? 0 : 1,
      "ui.prefersReducedMotion": still ? 1 : 0,
      "webgl.force-enabled": true, // by software: a test machine has no graphics card
    },
  });
  const close = async () => {
    await browser.close();
    rmSync(downloads, { recursive: true, force: true });
  };
  return { name, dark, still, downloads, close, newPage: () => browser.newPage(), process: () => browser.process() };
}

/** Open a page; `errors` gathers what must not be. `phone` has a finger for a pointer, in Chromium. */
export async function show(browser, path, { width = 1440, height = 1000, phone = false, webgl = true } = {}) {
  const page = await browser.newPage();
  const touch = phone && browser.name === "chromium" ? { isMobile: true, hasTouch: true } : {};
  await page.setViewport({ width, height, ...touch });
  if (browser.name === "chromium") {
    await page.emulateMediaFeatures([
      { name: "prefers-color-scheme", value: browser.dark ? "dark" : "light" },
      { name: "prefers-reduced-motion", value: browser.still ? "reduce" : "no-preference" },
    ]);
  }
  const errors = [];
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) errors.push(`asked for ${request.url()}`);
  });
  await page.evaluateOnNewDocument((drawn) => {
    globalThis.refused = []; // by the page's security policy, which Firefox does not write to the console
    const note = (event) => globalThis.refused.push(event.effectiveDirective);
    document.addEventListener("securitypolicyviolation", note);
    if (drawn) return;
    const { getContext } = HTMLCanvasElement.prototype;
    HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
      return kind === "webgl2" ? null : getContext.call(this, kind, ...more);
    };
  }, webgl);
  await page.goto(`file://${path}`);
  return { page, errors };
}

/** Open a report and wait until the explorer answers. */
export async function open(browser, path, options) {
  const shown = await show(browser, path, options);
  await until(shown.page, () => document.querySelector("#ex-explored[data-ready]") !== null);
  return shown;
}

/** Wait until a function of the page is true. The page's policy forbids what puppeteer's own waiting does. */
export async function until(page, done, ...given) {
  for (let i = 0; i < 1200; i++) {
    if (await page.evaluate(done, ...given)) return;
    await new Promise((go) => setTimeout(go, 50));
  }
  assert.fail(`waited a minute for ${done}`);
}

/** Wait until the what-if has its intervals. */
export async function answered(page) {
  await until(page, () => {
    const result = document.getElementById("ex-result");
    return !result.hidden && result.dataset.done && !document.getElementById("ex-genes").textContent.includes("…");
  });
}

/** Close a page that must have had no error, and must not have tried what its policy refuses. */
export async function close({ page, errors }) {
  const refused = await page.evaluate(() => globalThis.refused);
  assert.deepEqual([errors, refused], [[], []]);
  await page.close();
}

export const text = (page, selector) => page.$eval(selector, (e) => e.textContent);
export const value = (page, selector) => page.$eval(selector, (e) => e.value);
export const attribute = (page, selector, name) => page.$eval(selector, (e, n) => e.getAttribute(n), name);
export const count = (page, selector) => page.$$eval(selector, (found) => found.length);
export const visible = (page, selector) => page.$eval(selector, (e) => e.checkVisibility({ contentVisibilityAuto: true }));

/** Choose an option by its value or by its text. */
export async function choose(page, selector, { value: of, text: words }) {
  const find = (e, v, t) => [...e.options].find((o) => (t === undefined ? o.value === v : o.textContent === t)).value;
  await page.select(selector, await page.$eval(selector, find, of, words));
}

export async function type(page, selector, words) {
  await page.$eval(selector, (e, w) => {
    e.value = w;
    e.dispatchEvent(new Event("input", { bubbles: true }));
  }, words);
}

/** Take the first name that is suggested for a text. */
export async function suggested(page, selector, words) {
  await type(page, selector, words);
  await page.focus(selector);
  await page.keyboard.press("Enter");
}

/** Do what saves a file; return what the file holds. */
export async function saved({ downloads }, action) {
  await action();
  for (let i = 0; i < 400; i++) {
    const names = readdirSync(downloads);
    if (names.length === 1 && names[0].endsWith(".csv")) {
      const content = readFileSync(`${downloads}/${names[0]}`, "utf8");
      if (content) {
        rmSync(`${downloads}/${names[0]}`);
        return content;
      }
    }
    await new Promise((go) => setTimeout(go, 50));
  }
  return assert.fail("nothing was saved within 20 seconds");
}
