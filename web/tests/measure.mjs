// What a page costs in a browser, as JSON: BROWSER=firefox node tests/measure.mjs PATH/report.html
import { execFileSync } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { answered, attribute, choose, launch, open, until } from "./browser.mjs";

const path = process.argv[2];
const browser = await launch();

/** Return the memory of all processes of the browser, in MB; what they share is counted once. */
function memory() {
  const table = execFileSync("ps", ["-eo", "pid=,ppid="], { encoding: "utf8" }).trim().split("\n");
  const parents = table.map((line) => line.trim().split(/\s+/).map(Number));
  const ours = new Set([browser.process().pid]);
  for (const _ of parents) for (const [pid, parent] of parents) if (ours.has(parent)) ours.add(pid);
  let kilobytes = 0;
  for (const pid of ours) {
    try {
      kilobytes += Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1]);
    } catch {
      continue; // a process that ended meanwhile
    }
  }
  return kilobytes / 1024;
}

const empty = await browser.newPage();
await new Promise((done) => setTimeout(done, 2000));
const before = memory();
const { page } = await open(browser, path);
const first = await page.evaluate(async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now();
});
await new Promise((done) => setTimeout(done, 3000)); // what the page no longer needs is freed
const after = memory();
const heap = browser.name === "chromium" ? (await page.metrics()).JSHeapUsedSize / 1e6 : null;

/** Return the milliseconds until all maps have other colours. */
const recoloured = (what) =>
  page.evaluate(async (gene) => {
    const started = performance.now();
    if (gene) {
      const field = document.getElementById("ex-gene");
      field.value = gene;
      field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
    } else {
      const field = document.getElementById("ex-colour");
      field.selectedIndex = 1;
      field.dispatchEvent(new Event("change"));
    }
    await new Promise((done) => requestAnimationFrame(done));
    for (const canvas of document.querySelectorAll(".ex-map canvas")) {
      const gl = canvas.getContext("webgl2"); // to read a pixel waits for the drawing
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    }
    return performance.now() - started;
  }, what);

const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const found = {
  ...{ browser: browser.name, cells: Number((await page.$eval("#explorer", (e) => /([\d,]+)/.exec(e.querySelector("p.soft").textContent)[1])).replaceAll(",", "")) },
  ...{ file_MB: statSync(path).size / 1e6, ready_s: first / 1000, heap_MB: heap, process_MB: after - before, empty_MB: before },
  column_ms: await recoloured(""),
};
if (await page.evaluate(() => !document.getElementById("ex-gene").closest("div").hidden)) {
  await page.focus("#ex-gene");
  await page.keyboard.type("gene");
  await until(page, () => document.querySelectorAll("#ex-genes-found button").length > 4);
  const names = await page.$$eval("#ex-genes-found button", (all) => all.slice(0, 5).map((e) => e.textContent));
  const times = [];
  for (const name of names) times.push(await recoloured(name));
  found.gene_ms = middle(times);
}
if (await page.evaluate(() => !document.getElementById("ex-whatif").hidden)) {
  await choose(page, "#ex-label", { value: "0" });
  await choose(page, "#ex-batch", { value: "0" });
  await page.click("#ex-group");
  await answered(page);
  found.what_if_ms = Number(await attribute(page, "#ex-result", "data-ms"));
  found.with_intervals_ms = Number(await attribute(page, "#ex-result", "data-ms-interval"));
}
await empty.close();
await browser.close();
console.log(JSON.stringify(found));
