// What the explorer does. tests/test_explorer_browser.py writes the pages and what PyTorch says of them.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import {
  answered,
  attribute,
  choose,
  close,
  count,
  launch,
  open,
  OUT,
  saved,
  show,
  suggested,
  text,
  type,
  value,
  visible,
} from "./browser.mjs";

const SMALL = `${OUT}small/report.html`;
const LARGE = `${OUT}large/report.html`;
const expected = JSON.parse(readFileSync(`${OUT}expected.json`, "utf8"));
let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

async function draw(page, map, places) {
  const svg = (await page.$$(".ex-map svg"))[map];
  await svg.scrollIntoView();
  const now = await svg.boundingBox();
  const at = ([x, y]) => [now.x + x * now.width, now.y + y * now.height];
  await page.mouse.move(...at(places[0]));
  await page.mouse.down();
  for (const place of places.slice(1)) await page.mouse.move(...at(place), { steps: 4 });
  await page.mouse.up();
}

async function selected(page) {
  return Number(await attribute(page, "#ex-explored", "data-selected"));
}

async function table(page) {
  await answered(page);
  const lines = (await saved(browser, () => page.click("#ex-save"))).trim().split("\n");
  const names = lines[0].split(",");
  const found = {};
  for (const line of lines.slice(1)) {
    const [, gene, rest] = /^"((?:[^"]|"")*)",(.*)$/.exec(line);
    const numbers = rest.split(",").slice(0, 7).map((x) => (x === "" ? NaN : Number(x)));
    found[gene.replaceAll('""', '"').replace(/^'=/, "=")] = Object.fromEntries(numbers.map((x, i) => [names[i + 1], x]));
  }
  return found;
}

/** Largest difference from what PyTorch says, in the scaled unit. */
function far(found, said) {
  assert.equal(Object.keys(found).length, expected.genes.length);
  let most = 0;
  expected.genes.forEach((gene, g) => {
    for (const name of ["own_batch", "as_if", "change"]) {
      most = Math.max(most, Math.abs(found[gene][name] - said[name][g]) / expected.span[g]);
    }
  });
  return most;
}

async function pixels(page, map) {
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  return (await page.$$(".ex-map"))[map].screenshot({ encoding: "base64" });
}

async function pick(page, cell) {
  await suggested(page, "#ex-cell", cell);
}

test("one cell and a group say what PyTorch says", async () => {
  const { page, errors } = await open(browser, SMALL);
  for (const said of expected.cells) {
    await pick(page, said.cell);
    await choose(page, "#ex-target", { value: said.target });
    assert.ok(far(await table(page), said) < 1e-2);
  }
  for (const said of expected.groups) {
    await choose(page, "#ex-label", { text: said.label });
    await choose(page, "#ex-batch", { text: said.batch });
    await page.click("#ex-group");
    assert.equal(await selected(page), said.n);
    await choose(page, "#ex-target", { value: said.target });
    const found = await table(page);
    assert.ok(far(found, said) < 1e-2);
    for (const end of ["q05", "q95"]) {
      // The ends of 50 draws' intervals are off by 0.2 standard deviations, those of 30 draws' quantiles by 0.4.
      const off = expected.genes.map((gene, g) => (found[gene][end] - said[end][g]) / said.sd[g]);
      const typical = Math.sqrt(off.reduce((sum, x) => sum + x * x, 0) / off.length);
      assert.ok(typical < 0.28, `${end} lies ${typical} standard deviations from PyTorch's`);
    }
    expected.genes.forEach((gene, g) => {
      assert.ok(Math.abs(found[gene].measured - said.measured[g]) < 0.02);
      if (said.seen_change === null) assert.ok(Number.isNaN(found[gene].seen_change));
      else assert.ok(Math.abs(found[gene].seen_change - said.seen_change[g]) < 0.01);
    });
  }
  await close({ page, errors });
});

test("names from the data are text, whatever they hold", async () => {
  const { page, errors } = await open(browser, SMALL);
  assert.equal(await page.evaluate(() => document.scripts.length), 1);
  const said = expected.cells[0];
  await pick(page, said.cell);
  await answered(page);
  assert.ok((await text(page, "#ex-selection")).includes(said.cell));
  assert.ok((await text(page, "#ex-legend")).includes(expected.batches[0]));
  assert.ok((await text(page, "#ex-genes")).includes("<img src=x onerror=alert(1)>"));
  assert.equal(await count(page, "#explorer img"), 0);
  assert.equal(await page.evaluate(() => globalThis.alerted), undefined);
  await close({ page, errors });
});

test("no other script may run, and nothing may be asked for", async () => {
  const { page } = await open(browser, SMALL);
  const refused = await page.evaluate(async () => {
    const gone = [];
    document.addEventListener("securitypolicyviolation", (event) => gone.push(event.effectiveDirective));
    const script = document.createElement("script");
    script.textContent = "globalThis.alerted = 1";
    document.body.append(script);
    await fetch("data:text/plain,x").catch(() => gone.push("fetch"));
    await new Promise((done) => setTimeout(done, 100));
    return [...gone, String(globalThis.alerted)];
  });
  assert.ok(refused.includes("script-src-elem") && refused.includes("fetch"));
  assert.equal(refused.at(-1), "undefined");
  await page.close();
});

test("a lasso in one map selects and highlights in all", async () => {
  const { page, errors } = await open(browser, SMALL);
  assert.equal(await count(page, ".ex-map"), 3);
  const earlier = [await pixels(page, 0), await pixels(page, 2)];
  await draw(page, 1, [[0.01, 0.01], [0.5, 0.01], [0.5, 0.99], [0.01, 0.99]]);
  const n = await selected(page);
  assert.ok(n >= expected.left[0] && n <= expected.left[1], `${n} of ${expected.left}`);
  assert.notEqual(await pixels(page, 0), earlier[0]);
  assert.notEqual(await pixels(page, 2), earlier[1]);
  await answered(page);
  assert.match(await text(page, "#ex-status"), /cells selected on a map, as if from/);
  await page.click("#ex-clear");
  assert.equal(await selected(page), 0);
  await page.mouse.move(0, 0);
  assert.equal(await pixels(page, 2), earlier[1]);
  await close({ page, errors });
});

test("cells are coloured by columns of all kinds and by gene, and a legend says so", async () => {
  const { page, errors } = await open(browser, SMALL);
  const seen = new Set([await pixels(page, 0)]);
  const levels = () => count(page, "#ex-legend li");
  assert.equal(await levels(), expected.batches.length);
  await choose(page, "#ex-colour", { text: "cell_type" });
  assert.equal(await levels(), expected.labels.length);
  seen.add(await pixels(page, 0));
  await choose(page, "#ex-colour", { text: "score" });
  assert.equal(await levels(), 0);
  assert.match(await text(page, "#ex-legend"), /score.*−1\.00.*3\.00/);
  await choose(page, "#ex-colour", { text: "tiny" });
  assert.match(await text(page, "#ex-legend"), /tiny1\.00e−52\.00e−5Grey: no value, in 1 of the cells/);
  await choose(page, "#ex-colour", { text: "empty" });
  assert.equal(await text(page, "#ex-legend"), "No cell has a value of empty.");
  await choose(page, "#ex-colour", { text: "score" });
  seen.add(await pixels(page, 0));
  await suggested(page, "#ex-gene", expected.genes[3]);
  assert.match(await text(page, "#ex-legend"), /measured, log1p CP10k/);
  seen.add(await pixels(page, 0));
  assert.equal(seen.size, 4);
  await choose(page, "#ex-colour", { text: "cell_type" });
  await page.click("#ex-legend li button");
  assert.equal(await selected(page), expected.sizes[0]);
  await close({ page, errors });
});

test("a pointer on a cell shows what it is", async () => {
  const { page, errors } = await open(browser, SMALL);
  const svg = await page.$(".ex-map svg");
  await svg.scrollIntoView();
  const box = await svg.boundingBox();
  const [x, y] = expected.place;
  await page.mouse.move(box.x + ((x - 0.5) * 0.94 + 0.5) * box.width, box.y + (0.5 - (y - 0.5) * 0.94) * box.height);
  assert.ok((await text(page, ".ex-tip:not([hidden])")).includes(expected.cells[0].cell));
  await page.keyboard.press("Escape");
  assert.equal(await count(page, ".ex-tip:not([hidden])"), 0);
  await close({ page, errors });
});

test("what was never seen is called a guess", async () => {
  const { page, errors } = await open(browser, SMALL);
  await choose(page, "#ex-label", { text: expected.unseen.label });
  await choose(page, "#ex-batch", { value: "0" });
  await page.click("#ex-group");
  await choose(page, "#ex-target", { text: expected.unseen.batch });
  await answered(page);
  const words = await text(page, "#ex-warnings");
  assert.ok(words.includes(`${expected.unseen.label} was never seen in ${expected.unseen.batch}`));
  await choose(page, "#ex-target", { value: "-1" });
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /no cell was ever seen there/);
  await close({ page, errors });
});

test("batches that share no label are said to be", async () => {
  const { page, errors } = await open(browser, `${OUT}apart/report.html`);
  const shared = "share no label";
  await choose(page, "#ex-batch", { value: "1" });
  await page.click("#ex-group");
  await choose(page, "#ex-target", { value: "2" });
  await answered(page);
  assert.ok((await text(page, "#ex-warnings")).includes(`${expected.batches[1]} and ${expected.batches[2]} ${shared}`));
  await choose(page, "#ex-target", { value: "0" });
  await answered(page);
  assert.ok(!(await text(page, "#ex-warnings")).includes(shared));
  await choose(page, "#ex-target", { value: "1" });
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /are from .* already, so nothing changes/);
  await close({ page, errors });
});

test("without labels no observed change is shown, and the check of all cells is", async () => {
  const { page, errors } = await open(browser, `${OUT}unlabelled/report.html`);
  assert.match(await text(page, "#explorer"), /no labels, so no observed change is shown/);
  await choose(page, "#ex-batch", { value: "0" });
  await page.click("#ex-group");
  await choose(page, "#ex-target", { value: "1" });
  for (const numbers of Object.values(await table(page))) assert.ok(Number.isNaN(numbers.seen_change));
  assert.ok((await text(page, "#ex-warnings")).includes(`All cells together in ${expected.batches[1]}: predictions agreed well`));
  await choose(page, "#ex-target", { value: "2" });
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /All cells together .* not checked on held-out cells/);
  await close({ page, errors });
});

test("a change of several labels counts as seen only where all were", async () => {
  const { page, errors } = await open(browser, SMALL);
  const both = async (target) => {
    await choose(page, "#ex-target", { value: target });
    return Object.values(await table(page)).map((numbers) => numbers.seen_change);
  };
  await choose(page, "#ex-batch", { value: "0" });
  await page.click("#ex-group");
  assert.ok((await both("1")).every((x) => !Number.isNaN(x)));
  assert.ok((await both("2")).every((x) => Number.isNaN(x))); // one of the labels is not there
  await close({ page, errors });
});

test("cells without a label or a known batch are shown, and intervals that are too narrow", async () => {
  const { page, errors } = await open(browser, `${OUT}odd/report.html`);
  const level = async (name) => {
    await choose(page, "#ex-colour", { text: "odd" });
    const places = await page.$$eval("#ex-legend button span", (found) => found.map((e) => e.textContent));
    await (await page.$$("#ex-legend button"))[places.indexOf(name)].click();
    await choose(page, "#ex-target", { value: "1" });
    const found = Object.values(await table(page));
    return [await text(page, "#ex-warnings"), await text(page, "#ex-own-title"), found[0].seen_change];
  };
  const [unlabelled, own, seen] = await level("unlabelled");
  assert.match(unlabelled, /without a label: 6 of 6\. .* no prediction for them was checked/);
  assert.equal(own, "In their own batch");
  assert.ok(Number.isNaN(seen));
  assert.match(await text(page, "#ex-genes-note"), /decoder's effects only, so they may be too narrow; scmedley project --draws/);
  const [unknown, mean] = await level("stranger");
  assert.match(unknown, /no batch known to the model: 4 of 4\./);
  assert.doesNotMatch(unknown, /without a label/);
  assert.match(mean, /^At the population mean/);
  await page.click("#ex-clear");
  await page.click("#ex-group");
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /no batch known to the model: 4 of .*without a label: 6 of /);
  assert.match(await text(page, "#ex-own-title"), /or at the population mean/);
  await close({ page, errors });
});

test("a failed check and impossible means are shown", async () => {
  const { page, errors } = await open(browser, `${OUT}failed/report.html`);
  await choose(page, "#ex-batch", { value: "1" });
  await page.click("#ex-group");
  await choose(page, "#ex-target", { value: "2" });
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /^Do not use: in this run, predictions did not agree/);
  await choose(page, "#ex-target", { value: "0" });
  await answered(page);
  assert.match(await text(page, "#ex-warnings"), /Impossible means, below 0 or above 9\.21, are predicted for/);
  await suggested(page, "#ex-gene", expected.genes[3]);
  await type(page, "#ex-gene", "");
  assert.equal(await value(page, "#ex-colour"), "0");
  await page.click("#ex-clear");
  assert.equal(await value(page, "#ex-batch"), "");
  assert.equal(await text(page, "#ex-warnings"), "");
  await close({ page, errors });
});

test("the saved table says what was asked, and saving lets the browser answer", async () => {
  const { page, errors } = await open(browser, SMALL);
  await page.click("#ex-group");
  await choose(page, "#ex-target", { value: "1" });
  await answered(page);
  const n = await selected(page);
  const [head, first, ...others] = (await saved(browser, () => page.click("#ex-save"))).split("\n");
  assert.equal([first, ...others].filter((line) => line.startsWith('"\'=')).length, 1); // no formula for a spreadsheet
  assert.ok(![first, ...others].some((line) => line.startsWith('"=')));
  assert.ok(head.endsWith("selection,as_if_from,cells,cells_of_means,cells_of_intervals,seen_change_of"));
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  assert.ok(first.endsWith(`,${quoted(await text(page, "#ex-selection"))},${quoted(expected.batches[1])},${n},${n},30,"all cells"`));
  assert.match(await text(page, "#ex-genes-note"), /observed change: in all cells, training cells included/);
  assert.match(await text(page, "#ex-genes-note"), /width from 30 of the cells/);
  await close({ page, errors });
});

test("200,000 cells and 150 batches are drawn and selected", async () => {
  const { page, errors } = await open(browser, LARGE);
  assert.match(await text(page, "#explorer"), /All 200,000 cells are in this page/);
  assert.equal(await count(page, "#ex-legend li"), 150);
  const first = await pixels(page, 0);
  await draw(page, 0, [[0.01, 0.01], [0.99, 0.01], [0.99, 0.99], [0.01, 0.99]]);
  assert.equal(await selected(page), 200_000);
  await page.click("#ex-clear");
  await choose(page, "#ex-colour", { text: "cell_type" });
  assert.notEqual(await pixels(page, 0), first);
  const frames = await page.evaluate(async () => {
    const radio = document.querySelector('input[value="move"]');
    radio.click();
    const svg = document.querySelector(".ex-map svg");
    const started = performance.now();
    for (let i = 0; i < 20; i++) {
      svg.dispatchEvent(new WheelEvent("wheel", { deltaY: -20, clientX: 400, clientY: 400, cancelable: true }));
      await new Promise((done) => requestAnimationFrame(done));
    }
    return (performance.now() - started) / 20;
  });
  const ready = await attribute(page, "#ex-explored", "data-ready");
  console.log(`200,000 cells: ready after ${ready} ms; zooming ${frames.toFixed(0)} ms a frame`);
  await (await page.$("#explorer")).screenshot({ path: `${OUT}large-${browser.name}.png` });
  await close({ page, errors });
});

test("without scripts and without WebGL the pictures stand", async () => {
  writeFileSync(`${OUT}small/plain.html`, readFileSync(SMALL, "utf8").replace(/<script>.*<\/script>/s, ""));
  const { page: plain, errors } = await show(browser, `${OUT}small/plain.html`);
  assert.ok(await visible(plain, "#maps img"));
  assert.ok(await visible(plain, ".ex-off"));
  assert.ok(!(await visible(plain, "#ex-explored")));
  await close({ page: plain, errors });

  const { page, errors: others } = await open(browser, SMALL, { webgl: false });
  assert.ok(await visible(page, "#ex-no-maps"));
  assert.ok(await visible(page, "#maps img"));
  await page.close();
  assert.deepEqual(others, []);
});
