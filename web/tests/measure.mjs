// What web/README.md tells of a page: node tests/measure.mjs PATH/report.html
import { statSync } from "node:fs";
import { answered, launch, open } from "./browser.mjs";

const path = process.argv[2];
const browser = await launch();
const { page } = await open(browser, path);
const number = async (name, id = "#ex-result") => Number(await page.getAttribute(id, name));
console.log(`page: ${(statSync(path).size / 1e6).toFixed(1)} MB`);
console.log(`ready after: ${await number("data-ready", "#ex-explored")} ms`);
await page.evaluate(() => {
  globalThis.longest = 0;
  const watch = (list) => list.getEntries().forEach((e) => (globalThis.longest = Math.max(globalThis.longest, e.duration)));
  new PerformanceObserver(watch).observe({ type: "longtask" });
});
const ask = async (what) => {
  await page.click("#ex-group");
  await answered(page);
  const n = await number("data-selected", "#ex-explored");
  console.log(`${what} (${n} cells): ${await number("data-ms")} ms, with intervals ${await number("data-ms-interval")} ms`);
};
await page.selectOption("#ex-label", { index: 1 });
await page.selectOption("#ex-batch", { index: 1 });
await ask("one label of one batch");
await page.selectOption("#ex-label", "");
await page.selectOption("#ex-batch", "");
await ask("all cells");
const started = performance.now();
await Promise.all([page.waitForEvent("download"), page.click("#ex-save")]);
console.log(`saved after ${(performance.now() - started).toFixed(0)} ms`);
console.log(`longest task: ${await page.evaluate(() => globalThis.longest.toFixed(0))} ms`);
await browser.close();
