// The explorer of a report: linked maps, selections and what-if. The template is parts/explorer.html.j2.

import { anySize, bar, count, css, DARK, number, packed, rgb, scale } from "./colours";
import { byId, make, option, suggest } from "./dom";
import { Genes } from "./genes";
import { CellMap, type Mode } from "./map";
import { NONE, STEPS, unpack, type Column, type Payload } from "./payload";
import { NoWebGL } from "./points";
import { WhatIf } from "./whatif";

class Explorer {
  private readonly n: number;
  private readonly genes: Genes;
  private readonly whatif: WhatIf | undefined;
  private maps: CellMap[] = [];
  private selected: Uint32Array = new Uint32Array();
  private colouring: { column: number } | { gene: number } = { column: 0 };

  constructor(private readonly payload: Payload) {
    const { header } = payload;
    this.n = header.names.length;
    this.genes = new Genes(payload, this.n);
    this.makeMaps();
    this.makeColours();
    this.makeSelections();
    byId("whatif").hidden = !header.whatif;
    if (header.whatif) this.whatif = new WhatIf(payload, this.genes, (gene) => this.colourByGene(gene));
    DARK.addEventListener("change", () => {
      this.colour();
      this.whatif?.redraw();
    });
    this.colour();
    this.select(new Uint32Array(), "");
  }

  private makeMaps(): void {
    const grid = byId("maps");
    const template = grid.querySelector("template")!;
    this.payload.header.maps.forEach(({ title, note }, i) => {
      const figure = (template.content.cloneNode(true) as DocumentFragment).querySelector("figure")!;
      figure.querySelector("b")!.textContent = title;
      figure.querySelector("small")!.textContent = note;
      const words = `Map of cells: ${title}. Arrow keys move it, plus and minus zoom, 0 shows all.`;
      figure.querySelector("canvas")!.setAttribute("aria-label", words);
      grid.append(figure);
      try {
        const map = new CellMap(figure.querySelector(".ex-map")!, this.payload.get(`map${i}`) as Uint16Array, {
          hover: (cell, on) => this.hover(cell, on),
          pick: (cell) => this.pick(cell),
          lasso: (cells) => this.select(cells, `${count(cells.length)} cells selected on a map`),
        });
        for (const button of figure.querySelectorAll("button")) {
          const by = Number(button.dataset["zoom"]);
          button.setAttribute("aria-label", `${button.textContent}: ${title}`);
          button.addEventListener("click", () => (by ? map.zoom(by) : map.whole()));
        }
        this.maps.push(map);
      } catch (error) {
        if (!(error instanceof NoWebGL)) throw error;
        figure.remove();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.maps.forEach((map) => map.escape());
    });
    if (!this.maps.length) {
      byId("no-maps").hidden = false;
      document.documentElement.classList.remove("live"); // the pictures stay
    }
    const fine = matchMedia("(pointer: fine)").matches || !navigator.maxTouchPoints;
    for (const radio of document.querySelectorAll<HTMLInputElement>('input[name="ex-mode"]')) {
      radio.checked = radio.value === (fine ? "lasso" : "pick");
      const set = () => this.maps.forEach((map) => map.setMode(radio.value as Mode));
      radio.addEventListener("change", set);
      if (radio.checked) set();
    }
  }

  private makeColours(): void {
    const { header } = this.payload;
    const choice = byId<HTMLSelectElement>("colour");
    choice.append(...header.columns.map((column, i) => option(column.name, String(i))));
    choice.addEventListener("change", () => {
      this.colouring = { column: Number(choice.value) };
      byId<HTMLInputElement>("gene").value = "";
      this.colour();
    });
    byId("gene").closest("div")!.hidden = !this.genes.measured;
    suggest(byId("gene"), header.genes, (gene) => this.colourByGene(gene));
    byId("gene").addEventListener("input", () => {
      if (byId<HTMLInputElement>("gene").value || !("gene" in this.colouring) || !header.columns.length) return;
      choice.value = "0";
      choice.dispatchEvent(new Event("change"));
    });
  }

  private colourByGene(gene: number): void {
    this.colouring = { gene };
    byId<HTMLInputElement>("gene").value = this.payload.header.genes[gene]!;
    byId<HTMLSelectElement>("colour").value = "";
    this.colour();
  }

  private makeSelections(): void {
    const { header } = this.payload;
    suggest(byId("cell"), header.names, (cell) => this.pick(cell));
    const [label, batch] = [byId<HTMLSelectElement>("label"), byId<HTMLSelectElement>("batch")];
    label.append(...header.labels.map((name, i) => option(name, String(i))));
    batch.append(...header.batches.map((name, i) => option(name, String(i))));
    label.closest("div")!.hidden = !header.label_key;
    batch.closest("div")!.hidden = !header.batch_key;
    byId("group").addEventListener("click", () => {
      const [k, b] = [label.value, batch.value].map((value) => (value === "" ? -1 : Number(value)));
      const [labels, batches] = [this.payload.get("label"), this.payload.get("batch")];
      const cells = this.where((cell) => (k! < 0 || labels[cell] === k) && (b! < 0 || batches[cell] === b));
      const names = [header.labels[k!] ?? "any label", header.batches[b!] ?? "any batch"];
      this.select(cells, `${count(cells.length)} cells: ${header.label_key ? names.join(", ") : names[1]}`);
    });
    byId("clear").addEventListener("click", () => {
      label.value = batch.value = byId<HTMLInputElement>("cell").value = "";
      this.select(new Uint32Array(), "");
    });
  }

  private where(test: (cell: number) => boolean): Uint32Array {
    const found: number[] = [];
    for (let cell = 0; cell < this.n; cell++) if (test(cell)) found.push(cell);
    return Uint32Array.from(found);
  }

  private pick(cell: number): void {
    this.select(Uint32Array.of(cell), this.words(cell));
  }

  private words(cell: number): string {
    return `Cell ${this.payload.header.names[cell]} (${this.about(cell).join(", ")})`;
  }

  private about(cell: number): string[] {
    const { header } = this.payload;
    const label = this.payload.get("label")[cell]!;
    const batch = this.payload.get("batch")[cell]!;
    const kind = header.label_key ? (label === NONE ? "no label" : header.labels[label]!) : null;
    const nowhere = header.whatif ? "no batch known to the model" : "no batch";
    const from = header.batch_key ? (batch === NONE ? nowhere : header.batches[batch]!) : null;
    return [kind, from].filter((words) => words !== null);
  }

  /** Highlight cells in all maps and compute what-if for them. */
  private select(cells: Uint32Array, what: string): void {
    this.selected = cells;
    let mask: Uint8Array | null = null;
    if (cells.length) {
      mask = new Uint8Array(this.n);
      for (const cell of cells) mask[cell] = 1;
    }
    for (const map of this.maps) {
      map.points.select(mask);
      map.mark(cells.length === 1 ? cells[0]! : -1);
    }
    const nothing = what ? `${what}: none is in the page.` : "No cell is selected.";
    byId("selection").textContent = cells.length ? what : nothing;
    byId("explored").dataset["selected"] = String(cells.length);
    byId<HTMLButtonElement>("clear").disabled = !cells.length;
    this.whatif?.select(cells, what);
  }

  private hover(cell: number, on: CellMap): void {
    for (const map of this.maps) {
      map.tip.hidden = cell < 0 || map !== on;
      map.mark(cell >= 0 ? cell : this.selected.length === 1 ? this.selected[0]! : -1);
    }
    if (cell < 0) return;
    const lines = [this.payload.header.names[cell]!, ...this.about(cell), this.value(cell)];
    on.tip.replaceChildren(...lines.filter(Boolean).map((line) => make("span", line)));
    const [x, y] = on.pixel(cell);
    const wide = on.box.clientWidth;
    on.tip.style.left = `${Math.min(Math.max(x, 70), wide - 70)}px`;
    on.tip.style.top = `${y}px`;
    on.tip.classList.toggle("below", y < wide / 3);
  }

  /** Return the value that a cell is coloured by, as text. */
  private value(cell: number): string {
    if ("gene" in this.colouring) {
      const { gene } = this.colouring;
      return `${this.payload.header.genes[gene]}: ${number(this.genes.values(gene)[cell]!)}`;
    }
    const column = this.payload.header.columns[this.colouring.column];
    if (!column) return "";
    const code = this.payload.get(`column${this.colouring.column}`)[cell]!;
    if (code === NONE) return `${column.name}: no value`;
    if (column.levels) return `${column.name}: ${column.levels[code]}`;
    return `${column.name}: ${anySize(column.low! + (code / STEPS) * (column.high! - column.low!))}`;
  }

  /** Colour all maps and draw the legend. */
  private colour(): void {
    const { header } = this.payload;
    const colours = new Uint32Array(this.n).fill(0xffffffff);
    const nothing = packed(rgb(header.no_value));
    const sequential = scale("sequential");
    const ramp = Uint32Array.from({ length: 256 }, (_, i) => packed(sequential(i / 255)));
    if ("gene" in this.colouring) {
      const values = this.genes.values(this.colouring.gene);
      const most = values.reduce((a, b) => Math.max(a, b), 0);
      const unit = 255 / (most || 1);
      for (let cell = 0; cell < this.n; cell++) colours[cell] = ramp[Math.round(values[cell]! * unit)]!;
      this.gradient(`${header.genes[this.colouring.gene]}, measured, log1p CP10k`, "0", number(most));
    } else if (header.columns.length) {
      const index = this.colouring.column;
      const column = header.columns[index]!;
      const codes = this.payload.get(`column${index}`) as Uint16Array;
      const palette = header.palette.map((hex) => packed(rgb(hex)));
      const levels = column.levels && Uint32Array.from(column.levels, (_, i) => palette[i % palette.length]!);
      for (let cell = 0; cell < this.n; cell++) {
        const code = codes[cell]!;
        colours[cell] = code === NONE ? nothing : levels ? levels[code]! : ramp[code >> 8]!;
      }
      if (column.levels) this.legend(column, codes);
      else this.range(column, codes);
    }
    for (const map of this.maps) map.points.colour(new Uint8Array(colours.buffer));
  }

  /** List the levels, each as a button that selects its cells. */
  private legend(column: Column, codes: Uint16Array): void {
    const { palette, no_value } = this.payload.header;
    const sizes = new Uint32Array(NONE + 1);
    for (const code of codes) sizes[code]!++;
    const item = (name: string, code: number, hex: string) => {
      const button = make("button", "", { type: "button" });
      const dot = make("i", "", { "aria-hidden": "true" });
      dot.style.background = css(rgb(hex));
      button.append(dot, make("span", name), make("small", count(sizes[code]!)));
      button.addEventListener("click", () => {
        const cells = this.where((cell) => codes[cell] === code);
        this.select(cells, `${count(cells.length)} cells: ${column.name} ${name}`);
      });
      const found = make("li");
      found.append(button);
      return found;
    };
    const items = column.levels!.map((name, i) => item(name, i, palette[i % palette.length]!));
    if (sizes[NONE]) items.push(item("no value", NONE, no_value));
    const n = column.levels!.length;
    const words = `${count(n)} ${n === 1 ? "level" : "levels"} of ${column.name}. Click a level to select its cells.`;
    const repeat = n > palette.length ? ` Only ${palette.length} colours can be told apart, so they repeat.` : "";
    const list = make("ul");
    list.append(...items);
    byId("legend").replaceChildren(make("p", words + repeat, { class: "soft" }), list);
  }

  /** Show the colours of a quantity, and the number of cells without a value. */
  private range(column: Column, codes: Uint16Array): void {
    const without = codes.reduce((n, code) => n + Number(code === NONE), 0);
    if (without === this.n) {
      byId("legend").replaceChildren(make("p", `No cell has a value of ${column.name}.`, { class: "soft" }));
      return;
    }
    this.gradient(column.name, anySize(column.low!), anySize(column.high!));
    if (without) byId("legend").append(make("p", `Grey: no value, in ${count(without)} of the cells.`, { class: "soft" }));
  }

  private gradient(title: string, low: string, high: string): void {
    const line = make("p", "", { class: "ex-scale" });
    const canvas = make("canvas", "", { "aria-hidden": "true" });
    bar(canvas, "sequential");
    line.append(make("span", title), make("span", low), canvas, make("span", high));
    byId("legend").replaceChildren(line);
  }
}

async function start(): Promise<void> {
  const data = document.getElementById("ex-data");
  if (!data || typeof DecompressionStream === "undefined") return;
  const page = document.documentElement;
  const payload = await unpack(data.textContent!.trim());
  data.remove();
  page.classList.add("live");
  byId("explored").hidden = false;
  try {
    new Explorer(payload);
  } catch (error) {
    page.classList.remove("live"); // show the pictures instead
    byId("explored").hidden = true;
    throw error;
  }
  byId("explored").dataset["ready"] = performance.now().toFixed(0);
}

void start();
