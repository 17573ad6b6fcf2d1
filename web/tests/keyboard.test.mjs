// The keyboard alone: every control is reached, seen and used, and nothing holds the focus.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { answered, attribute, choose, close, count, launch, open, OUT, saved, text, value } from "./browser.mjs";

const SMALL = `${OUT}small/report.html`;
const expected = JSON.parse(readFileSync(`${OUT}expected.json`, "utf8"));
let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** Describe the element that has the focus: its place among those that can have it, and whether it is seen. */
const focused = (page) =>
  page.evaluate(() => {
    const found = document.activeElement;
    if (!found || found === document.body || found === document.documentElement) return null;
    const box = found.getBoundingClientRect();
    const [left, right] = [Math.max(box.left, 0), Math.min(box.right, innerWidth)];
    const [upper, lower] = [Math.max(box.top, 0), Math.min(box.bottom, innerHeight)]; // of what is in view
    const { outlineStyle, outlineWidth } = getComputedStyle(found);
    const top = document.elementFromPoint((left + right) / 2, (upper + lower) / 2);
    const over = top && (found.contains(top) || top.contains(found) || top.closest(".ex-map")?.contains(found));
    return {
      place: globalThis.stops.indexOf(found),
      words: found.outerHTML.slice(0, 120),
      ringed: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2,
      seen: box.bottom > 0 && box.top < innerHeight && box.width > 0 && Boolean(over),
    };
  });

async function press(page, ...keys) {
  for (const key of keys) await page.keyboard.press(key);
}

test("Tab reaches every control in order, each is seen, and leaves the page", async () => {
  const { page, errors } = await open(browser, SMALL);
  await page.click("#ex-group");
  await answered(page);
  const all = await page.evaluate(() => {
    const able = "a[href], button, input, select, summary, [tabindex='0']";
    const here = (e) => e.checkVisibility({ contentVisibilityAuto: true }) && !e.disabled;
    const chosen = (e) => e.type !== "radio" || e.checked; // the arrow keys reach the others
    globalThis.stops = [...document.querySelectorAll(able)].filter((e) => here(e) && chosen(e));
    document.activeElement.blur();
    getSelection().removeAllRanges();
    scrollTo(0, 0);
    document.body.tabIndex = -1;
    document.body.focus();
    return globalThis.stops.length;
  });
  assert.ok(all > 40, `${all} controls`);
  const places = [];
  for (let i = 0; i < all + 3; i++) {
    await press(page, "Tab");
    const now = await focused(page);
    if (!now || now.place === places[0]) break;
    assert.ok(now.ringed, `no ring: ${now.words}`);
    assert.ok(now.seen, `not in view: ${now.words}`);
    places.push(now.place);
  }
  assert.deepEqual(places, [...Array(all).keys()]);
  await page.keyboard.down("Shift");
  await press(page, "Tab", "Tab");
  await page.keyboard.up("Shift");
  assert.ok((await focused(page)) !== null); // and back into it
  await close({ page, errors });
});

test("a question is asked, answered and saved", async () => {
  const { page, errors } = await open(browser, SMALL);
  const { cell } = expected.cells[0];
  await page.focus("#ex-cell");
  await page.keyboard.type(cell.slice(0, 6));
  await press(page, "ArrowDown", "Enter");
  assert.equal(await attribute(page, "#ex-explored", "data-selected"), "1");
  assert.equal(await value(page, "#ex-cell"), cell);
  await page.focus("#ex-target");
  await press(page, "End");
  await answered(page);
  assert.equal(await value(page, "#ex-target"), "-1");
  await choose(page, "#ex-target", { value: "1" });
  await page.focus("#ex-genes button");
  await answered(page); // the intervals come later and must not take the focus
  assert.ok(await page.evaluate(() => document.activeElement.closest("#ex-genes") !== null));
  await press(page, "Enter");
  assert.match(await text(page, "#ex-legend"), /measured, log1p CP10k/);
  await page.focus("#ex-save");
  assert.match(await saved(browser, () => press(page, "Enter")), /^gene,own_batch,as_if,change/);
  await page.focus("#ex-group");
  await press(page, "Tab", "Enter"); // Clear
  assert.equal(await attribute(page, "#ex-explored", "data-selected"), "0");
  await choose(page, "#ex-colour", { value: "0" });
  await page.focus("#ex-legend button");
  await press(page, " ");
  assert.ok(Number(await attribute(page, "#ex-explored", "data-selected")) > 1);
  await close({ page, errors });
});

test("suggestions are walked by arrows, and Escape or leaving closes them", async () => {
  const { page, errors } = await open(browser, SMALL);
  const list = () => count(page, "#ex-genes-found button");
  const at = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);
  await page.focus("#ex-gene");
  await page.keyboard.type("g");
  assert.equal(await list(), 8);
  await press(page, "ArrowDown", "ArrowDown");
  const second = await at();
  assert.notEqual(second, "ex-gene");
  await press(page, "ArrowUp", "ArrowUp");
  assert.equal(await at(), "ex-gene");
  await press(page, "ArrowDown", "Escape");
  assert.equal(await at(), "ex-gene");
  assert.equal(await list(), 0);
  assert.equal(await value(page, "#ex-gene"), "g"); // Escape closed the list and left the text
  await press(page, "Backspace");
  await page.keyboard.type("g");
  assert.ok((await list()) > 0);
  await page.focus("#ex-colour");
  assert.equal(await list(), 0);
  await close({ page, errors });
});

test("arrow keys move maps and read pictures, and Escape gives up a line", async () => {
  const { page, errors } = await open(browser, SMALL);
  const drawn = async () => {
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    return (await page.$(".ex-map")).screenshot({ encoding: "base64" });
  };
  await page.focus(".ex-map canvas");
  const whole = await drawn();
  const seen = new Set([whole]);
  for (const key of ["ArrowLeft", "ArrowUp", "+", "-"]) {
    await press(page, key);
    seen.add(await drawn());
  }
  assert.equal(seen.size, 4); // zooming in and out again gives the same picture
  await press(page, "0");
  assert.equal(await drawn(), whole);

  const box = await (await page.$(".ex-map")).boundingBox();
  await page.mouse.move(box.x + 5, box.y + 5);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width - 5, box.y + 5, { steps: 4 });
  await page.mouse.move(box.x + box.width - 5, box.y + box.height - 5, { steps: 4 });
  await press(page, "Escape");
  await page.mouse.up();
  assert.equal(await attribute(page, "#ex-explored", "data-selected"), "0");

  await page.click("#ex-group");
  await answered(page);
  await page.focus("#ex-change");
  const read = new Set();
  for (const key of ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight"]) {
    await press(page, key);
    read.add(await text(page, "#ex-change-gene"));
  }
  assert.equal(read.size, 4);
  for (const words of read) assert.ok(expected.genes.some((gene) => words.startsWith(gene)));
  assert.equal(await attribute(page, "#ex-status", "role"), "status");
  await close({ page, errors });
});
