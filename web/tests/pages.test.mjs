// Every kind of page, narrow and wide, light and dark, printed, and by axe-core.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";
import { answered, close, launch, OUT, show, until } from "./browser.mjs";

const { pages } = JSON.parse(readFileSync(`${OUT}expected.json`, "utf8"));
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/** Open a page with all of its folds, and with an answer where it has an explorer. */
async function unfolded(browser, name, options) {
  const shown = await show(browser, OUT + pages[name], options);
  const { page } = shown;
  if (await page.evaluate(() => document.getElementById("ex-data") !== null || document.scripts.length > 0)) {
    await until(page, () => document.querySelector("#ex-explored[data-ready]") !== null);
    if (await page.evaluate(() => !document.getElementById("ex-whatif").hidden)) {
      await page.click("#ex-group");
      await answered(page);
    }
  }
  return shown;
}

const unfold = (page) => page.evaluate(() => document.querySelectorAll("details").forEach((e) => (e.open = true)));

async function violations(page) {
  await page.evaluate(`${AXE};0`);
  return page.evaluate(async (tags) => {
    const found = await globalThis.axe.run(document, { runOnly: tags, resultTypes: ["violations"] });
    const where = ({ target, failureSummary }) => `${target.join(" ")}: ${failureSummary.split("\n").slice(1, 3).join(";")}`;
    return found.violations.map(({ id, impact, nodes }) => `${impact} ${id} (${nodes.length}) ${nodes.slice(0, 3).map(where).join(" | ")}`);
  }, RULES);
}

/** Return the controls that a finger misses: lower or narrower than 24 px, text in a sentence apart. */
const small = (page, least) =>
  page.evaluate((most) => {
    const able = "button, select, input, summary, nav a";
    return [...document.querySelectorAll(able)]
      .filter((e) => e.checkVisibility({ contentVisibilityAuto: true }))
      .map((e) => [e, (e.labels?.length && /radio|checkbox/.test(e.type) ? e.labels[0] : e).getBoundingClientRect()])
      .filter(([, box]) => Math.min(box.width, box.height) < most - 0.5)
      .map(([e, box]) => `${e.outerHTML.slice(0, 80)} ${box.width.toFixed(0)} x ${box.height.toFixed(0)}`);
  }, least);

for (const dark of [false, true]) {
  describe(dark ? "dark" : "light", () => {
    let browser;
    before(async () => (browser = await launch({ dark, still: dark })));
    after(() => browser.close());

    for (const name of Object.keys(pages)) {
      for (const width of [390, 1440]) {
        test(`${name} at ${width} px`, async () => {
          const phone = width < 500;
          const { page, errors } = await unfolded(browser, name, { width, height: phone ? 844 : 1000, phone });
          const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
          assert.equal(Number(/\d+/.exec(ground)[0]) < 60, dark);
          await page.screenshot({ path: `${OUT}${name}-${width}-${dark ? "dark" : "light"}-${browser.name}.png`, fullPage: true });
          await unfold(page);
          assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width);
          assert.deepEqual(await small(page, phone && browser.name === "chromium" ? 32 : 24), []);
          if (dark) assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
          assert.deepEqual(await violations(page), []);
          await close({ page, errors });
        });
      }
    }
  });
}

describe("on paper", () => {
  let browser;
  before(async () => (browser = await launch({ dark: true }))); // paper is white all the same
  after(() => browser.close());

  for (const name of Object.keys(pages)) {
    test(name, async () => {
      const { page, errors } = await unfolded(browser, name);
      const said = await page.evaluate(() => {
        const folded = [...document.querySelectorAll("h2, summary, details:not([open]) :is(p, th)")];
        return folded.filter((e) => !e.closest(".ex-off, .live #maps, p:has(.more)")).map((e) => e.firstChild?.textContent.trim() ?? "");
      });
      if (browser.name === "chromium") {
        await page.emulateMediaType("print");
        const dark = await page.$$eval("figure .dark", (found) => found.filter((e) => e.checkVisibility()).length);
        assert.equal(dark, 0); // pictures for a dark screen, on white paper
        await page.emulateMediaType(); // as it was
      }
      const path = `${OUT}${name}-${browser.name}.pdf`;
      await page.pdf({ path, format: "A4", printBackground: false });
      const paper = execFileSync("pdftotext", ["-layout", path, "-"], { encoding: "utf8" });
      const printed = paper.normalize("NFKC").replace(/\s+/g, ""); // Firefox joins letters: ﬁ
      for (const control of ["Colourby", "Showmore", "Savealgenes", "Skiptothe"]) assert.ok(!printed.includes(control), control);
      const lost = said.filter((words) => words.split(/\s+/, 3).some((word) => !printed.includes(word)));
      assert.deepEqual(lost, []);
      await close({ page, errors });
    });
  }
});
