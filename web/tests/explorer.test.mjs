// The explorer in headless Chromium. tests/test_explorer_browser.py writes the pages and what PyTorch says of them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { answered, launch, none, open, OUT } from "./browser.mjs";

const SMALL = `${OUT}small/report.html`;
const LARGE = `${OUT}large/report.html`;
const expected = JSON.parse(readFileSync(`${OUT}expected.json`, "utf8"));
let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

async function draw(page, map, places) {
  await page.locator(".ex-map svg").nth(map).scrollIntoViewIfNeeded();
  const now = await page.locator(".ex-map svg").nth(map).boundingBox();
  const at = ([x, y]) => [now.x + x * now.width, now.y + y * now.height];
  await page.mouse.move(...at(places[0]));
  await page.mouse.down();
  for (const place of places.slice(1)) await page.mouse.move(...at(place), { steps: 4 });
  await page.mouse.up();
}

async function selected(page) {
  return Number(await page.getAttribute("#ex-explored", "data-selected"));
}

async function table(page) {
  await answered(page);
  const [saved] = await Promise.all([page.waitForEvent("download"), page.click("#ex-save")]);
  const lines = readFileSync(await saved.path(), "utf8").trim().split("\n");
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
  return (await page.locator(".ex-map").nth(map).screenshot()).toString("base64");
}

async function pick(page, cell) {
  await page.fill("#ex-cell", cell);
  await page.press("#ex-cell", "Enter");
}

test("one cell and a group say what PyTorch says", async () => {
  const { page, errors } = await open(browser, SMALL);
  for (const said of expected.cells) {
    await pick(page, said.cell);
    await page.selectOption("#ex-target", said.target);
    assert.ok(far(await table(page), said) < 1e-2);
  }
  for (const said of expected.groups) {
    await page.selectOption("#ex-label", { label: said.label });
    await page.selectOption("#ex-batch", { label: said.batch });
    await page.click("#ex-group");
    assert.equal(await selected(page), said.n);
    await page.selectOption("#ex-target", said.target);
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
  none(errors);
  await page.close();
});

test("names from the data are text, whatever they hold", async () => {
  const { page, errors } = await open(browser, SMALL);
  assert.equal(await page.evaluate(() => document.scripts.length), 1);
  const said = expected.cells[0];
  await pick(page, said.cell);
  await answered(page);
  assert.ok((await page.textContent("#ex-selection")).includes(said.cell));
  assert.ok((await page.textContent("#ex-legend")).includes(expected.batches[0]));
  assert.ok((await page.textContent("#ex-genes")).includes("<img src=x onerror=alert(1)>"));
  assert.equal(await page.locator("#explorer img").count(), 0);
  assert.equal(await page.evaluate(() => globalThis.alerted), undefined);
  none(errors);
  await page.close();
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
    return [...gone, globalThis.alerted];
  });
  assert.ok(refused.includes("script-src-elem") && refused.includes("fetch"));
  assert.equal(refused.at(-1), undefined);
  await page.close();
});

test("a lasso in one map selects and highlights in all", async () => {
  const { page, errors } = await open(browser, SMALL);
  assert.equal(await page.locator(".ex-map").count(), 3);
  const earlier = [await pixels(page, 0), await pixels(page, 2)];
  await draw(page, 1, [[0.001, 0.001], [0.5, 0.001], [0.5, 0.999], [0.001, 0.999]]);
  const n = await selected(page);
  assert.ok(n >= expected.left[0] && n <= expected.left[1], `${n} of ${expected.left}`);
  assert.notEqual(await pixels(page, 0), earlier[0]);
  assert.notEqual(await pixels(page, 2), earlier[1]);
  await answered(page);
  assert.match(await page.textContent("#ex-status"), /cells selected on a map, as if from/);
  await page.click("#ex-clear");
  assert.equal(await selected(page), 0);
  await page.mouse.move(0, 0);
  assert.equal(await pixels(page, 2), earlier[1]);
  none(errors);
  await page.close();
});

test("cells are coloured by columns of all kinds and by gene, and a legend says so", async () => {
  const { page, errors } = await open(browser, SMALL);
  const seen = new Set([await pixels(page, 0)]);
  const levels = page.locator("#ex-legend li");
  assert.equal(await levels.count(), expected.batches.length);
  await page.selectOption("#ex-colour", { label: "cell_type" });
  assert.equal(await levels.count(), expected.labels.length);
  seen.add(await pixels(page, 0));
  await page.selectOption("#ex-colour", { label: "score" });
  assert.equal(await levels.count(), 0);
  assert.match(await page.textContent("#ex-legend"), /score.*−1\.00.*3\.00/);
  await page.selectOption("#ex-colour", { label: "tiny" });
  assert.match(await page.textContent("#ex-legend"), /tiny1\.00e−52\.00e−5Grey: no value, in 1 of the cells/);
  await page.selectOption("#ex-colour", { label: "empty" });
  assert.equal(await page.textContent("#ex-legend"), "No cell has a value of empty.");
  await page.selectOption("#ex-colour", { label: "score" });
  seen.add(await pixels(page, 0));
  await page.fill("#ex-gene", expected.genes[3]);
  await page.press("#ex-gene", "Enter");
  assert.match(await page.textContent("#ex-legend"), /measured, log1p CP10k/);
  seen.add(await pixels(page, 0));
  assert.equal(seen.size, 4);
  await page.selectOption("#ex-colour", { label: "cell_type" });
  await levels.nth(0).locator("button").click();
  assert.equal(await selected(page), expected.sizes[0]);
  none(errors);
  await page.close();
});

test("a pointer on a cell shows what it is", async () => {
  const { page, errors } = await open(browser, SMALL);
  const svg = page.locator(".ex-map svg").first();
  await svg.scrollIntoViewIfNeeded();
  const box = await svg.boundingBox();
  const [x, y] = expected.place;
  await page.mouse.move(box.x + ((x - 0.5) * 0.94 + 0.5) * box.width, box.y + (0.5 - (y - 0.5) * 0.94) * box.height);
  const tip = page.locator(".ex-tip:visible");
  await tip.waitFor();
  assert.ok((await tip.textContent()).includes(expected.cells[0].cell));
  none(errors);
  await page.close();
});

test("what was never seen is called a guess", async () => {
  const { page, errors } = await open(browser, SMALL);
  await page.selectOption("#ex-label", { label: expected.unseen.label });
  await page.selectOption("#ex-batch", { index: 1 });
  await page.click("#ex-group");
  await page.selectOption("#ex-target", { label: expected.unseen.batch });
  await answered(page);
  const words = await page.textContent("#ex-warnings");
  assert.ok(words.includes(`${expected.unseen.label} was never seen in ${expected.unseen.batch}`));
  await page.selectOption("#ex-target", "-1");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /no cell was ever seen there/);
  none(errors);
  await page.close();
});

test("batches that share no label are said to be", async () => {
  const { page, errors } = await open(browser, `${OUT}apart/report.html`);
  const shared = "share no label";
  await page.selectOption("#ex-batch", "1");
  await page.click("#ex-group");
  await page.selectOption("#ex-target", "2");
  await answered(page);
  assert.ok((await page.textContent("#ex-warnings")).includes(`${expected.batches[1]} and ${expected.batches[2]} ${shared}`));
  await page.selectOption("#ex-target", "0");
  await answered(page);
  assert.ok(!(await page.textContent("#ex-warnings")).includes(shared));
  await page.selectOption("#ex-target", "1");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /are from .* already, so nothing changes/);
  none(errors);
  await page.close();
});

test("without labels no observed change is shown, and the check of all cells is", async () => {
  const { page, errors } = await open(browser, `${OUT}unlabelled/report.html`);
  assert.match(await page.textContent("#explorer"), /no labels, so no observed change is shown/);
  await page.selectOption("#ex-batch", "0");
  await page.click("#ex-group");
  await page.selectOption("#ex-target", "1");
  for (const numbers of Object.values(await table(page))) assert.ok(Number.isNaN(numbers.seen_change));
  assert.ok((await page.textContent("#ex-warnings")).includes(`All cells together in ${expected.batches[1]}: predictions agreed well`));
  await page.selectOption("#ex-target", "2");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /All cells together .* not checked on held-out cells/);
  none(errors);
  await page.close();
});

test("a change of several labels counts as seen only where all were", async () => {
  const { page, errors } = await open(browser, SMALL);
  const both = async (target) => {
    await page.selectOption("#ex-target", target);
    return Object.values(await table(page)).map((numbers) => numbers.seen_change);
  };
  await page.selectOption("#ex-batch", "0");
  await page.click("#ex-group");
  assert.ok((await both("1")).every((x) => !Number.isNaN(x)));
  assert.ok((await both("2")).every((x) => Number.isNaN(x))); // one of the labels is not there
  none(errors);
  await page.close();
});

test("cells without a label or a known batch are shown, and intervals that are too narrow", async () => {
  const { page, errors } = await open(browser, `${OUT}odd/report.html`);
  const choose = async (name) => {
    await page.selectOption("#ex-colour", { label: "odd" });
    await page.locator("#ex-legend button", { has: page.getByText(name, { exact: true }) }).click();
    await page.selectOption("#ex-target", "1");
    const found = Object.values(await table(page));
    return [await page.textContent("#ex-warnings"), await page.textContent("#ex-own-title"), found[0].seen_change];
  };
  const [unlabelled, own, seen] = await choose("unlabelled");
  assert.match(unlabelled, /without a label: 6 of 6\. .* no prediction for them was checked/);
  assert.equal(own, "In their own batch");
  assert.ok(Number.isNaN(seen));
  assert.match(await page.textContent("#ex-genes-note"), /decoder's effects only, so they may be too narrow; scmedley project --draws/);
  const [unknown, mean] = await choose("stranger");
  assert.match(unknown, /no batch known to the model: 4 of 4\./);
  assert.doesNotMatch(unknown, /without a label/);
  assert.match(mean, /^At the population mean/);
  await page.click("#ex-clear");
  await page.click("#ex-group");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /no batch known to the model: 4 of .*without a label: 6 of /);
  assert.match(await page.textContent("#ex-own-title"), /or at the population mean/);
  none(errors);
  await page.close();
});

test("a failed check and impossible means are shown", async () => {
  const { page, errors } = await open(browser, `${OUT}failed/report.html`);
  await page.selectOption("#ex-batch", "1");
  await page.click("#ex-group");
  await page.selectOption("#ex-target", "2");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /^Do not use: in this run, predictions did not agree/);
  await page.selectOption("#ex-target", "0");
  await answered(page);
  assert.match(await page.textContent("#ex-warnings"), /Impossible means, below 0 or above 9\.21, are predicted for/);
  await page.fill("#ex-gene", expected.genes[3]);
  await page.press("#ex-gene", "Enter");
  await page.fill("#ex-gene", "");
  assert.equal(await page.inputValue("#ex-colour"), "0");
  await page.click("#ex-clear");
  assert.equal(await page.inputValue("#ex-batch"), "");
  assert.equal(await page.textContent("#ex-warnings"), "");
  none(errors);
  await page.close();
});

test("the saved table says what was asked, and saving lets the browser answer", async () => {
  const { page, errors } = await open(browser, SMALL);
  await page.click("#ex-group");
  await page.selectOption("#ex-target", "1");
  await answered(page);
  const n = await selected(page);
  const [saved] = await Promise.all([page.waitForEvent("download"), page.click("#ex-save")]);
  const [head, first, ...others] = readFileSync(await saved.path(), "utf8").split("\n");
  assert.equal([first, ...others].filter((line) => line.startsWith('"\'=')).length, 1); // no formula for a spreadsheet
  assert.ok(![first, ...others].some((line) => line.startsWith('"=')));
  assert.ok(head.endsWith("selection,as_if_from,cells,cells_of_means,cells_of_intervals,seen_change_of"));
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  assert.ok(first.endsWith(`,${quoted(await page.textContent("#ex-selection"))},${quoted(expected.batches[1])},${n},${n},30,"all cells"`));
  assert.match(await page.textContent("#ex-genes-note"), /observed change: in all cells, training cells included/);
  assert.match(await page.textContent("#ex-genes-note"), /width from 30 of the cells/);
  none(errors);
  await page.close();
});

test("the keyboard is enough", async () => {
  const { page, errors } = await open(browser, SMALL);
  await page.focus("#ex-cell");
  await page.keyboard.type(expected.cells[0].cell.slice(0, 6));
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await selected(page), 1);
  await page.focus("#ex-target");
  await page.keyboard.press("End");
  await answered(page);
  assert.equal(await page.inputValue("#ex-target"), "-1");
  await page.selectOption("#ex-target", "1");
  await page.locator("#ex-genes button").first().focus();
  await answered(page); // the intervals come later and must not take the focus
  assert.equal(await page.evaluate(() => document.activeElement.closest("#ex-genes") !== null), true);
  await page.focus("#ex-change");
  const read = new Set();
  for (const key of ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight"]) {
    await page.keyboard.press(key);
    read.add(await page.textContent("#ex-change-gene"));
  }
  assert.equal(read.size, 4);
  for (const words of read) assert.ok(expected.genes.some((gene) => words.startsWith(gene)));
  assert.equal(await page.getAttribute("#ex-status", "role"), "status");
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll("#explorer input, #explorer select, #explorer button, #explorer canvas[role]")]
      .filter((e) => !e.labels?.length && !e.textContent.trim() && !e.getAttribute("aria-label"))
      .map((e) => e.outerHTML),
  );
  assert.deepEqual(unnamed, []);
  none(errors);
  await page.close();
});

for (const width of [390, 1440]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`nothing runs over at ${width} px, ${colorScheme}`, async () => {
      const phone = width < 500 ? { isMobile: true, hasTouch: true } : {};
      const { page, errors } = await open(browser, SMALL, { width, colorScheme, ...phone });
      await pick(page, expected.cells[0].cell);
      await answered(page);
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width);
      const wide = async (id) => (await page.locator(id).boundingBox()).width;
      if (width > 500) assert.ok((await wide("#ex-target")) > (await wide("#ex-colour"))); // its text is not cut
      await page.locator("#explorer").screenshot({ path: `${OUT}${width}-${colorScheme}.png` });
      none(errors);
      await page.close();
    });
  }
}

test("200,000 cells and 150 batches are drawn and selected", async () => {
  const { page, errors } = await open(browser, LARGE);
  assert.match(await page.textContent("#explorer"), /All 200,000 cells are in this page/);
  assert.equal(await page.locator("#ex-legend li").count(), 150);
  const first = await pixels(page, 0);
  await draw(page, 0, [[0.001, 0.001], [0.999, 0.001], [0.999, 0.999], [0.001, 0.999]]);
  assert.equal(await selected(page), 200_000);
  await page.click("#ex-clear");
  await page.selectOption("#ex-colour", { label: "cell_type" });
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
  const ready = await page.getAttribute("#ex-explored", "data-ready");
  console.log(`200,000 cells: ready after ${ready} ms; zooming ${frames.toFixed(0)} ms a frame`);
  await page.locator("#explorer").screenshot({ path: `${OUT}large.png` });
  none(errors);
  await page.close();
});

test("without scripts, on paper and without WebGL the pictures stand", async () => {
  const plain = await browser.newPage({ javaScriptEnabled: false });
  await plain.goto(`file://${SMALL}`);
  assert.ok(await plain.locator("#maps img").first().isVisible());
  assert.ok(await plain.locator(".ex-off").isVisible());
  assert.ok(!(await plain.locator("#ex-explored").isVisible()));
  await plain.close();

  const { page } = await open(browser, SMALL);
  assert.ok(!(await page.locator("#maps").isVisible()));
  await pick(page, expected.cells[0].cell);
  await answered(page);
  await page.emulateMedia({ media: "print" });
  assert.ok(await page.locator("#maps img").first().isVisible());
  assert.ok(!(await page.locator("#ex-maps").isVisible()));
  assert.ok(await page.locator(".ex-genes").isVisible());
  await page.pdf({ path: `${OUT}printed.pdf` });
  await page.close();

  const bare = await launch("--disable-3d-apis");
  const off = await open(bare, SMALL);
  assert.ok(await off.page.locator("#ex-no-maps").isVisible());
  assert.ok(await off.page.locator("#maps img").first().isVisible());
  await pick(off.page, expected.cells[0].cell);
  await off.page.selectOption("#ex-target", expected.cells[0].target);
  assert.ok(far(await table(off.page), expected.cells[0]) < 1e-2);
  await bare.close();
});
