// "As if from another batch": the selected cells through the decoder, and what was seen beside it.

import { bar, count, number } from "./colours";
import { Decoder, Stopped, uniforms } from "./decoder";
import { byId, download, make, option } from "./dom";
import type { Genes } from "./genes";
import { Genomap } from "./genomap";
import { NONE, pause, type Payload } from "./payload";

const TOP = 15;
const MOST = 2000; // cells that a mean is taken over
const MOST_DRAWN = 200; // cells that an interval is taken over

interface Answer {
  target: string;
  own: Float32Array;
  there: Float32Array;
  change: Float32Array;
  low?: Float32Array;
  high?: Float32Array;
}

export class WhatIf {
  private readonly decoder: Decoder;
  private readonly pictures: { own: Genomap; there: Genomap; change: Genomap } | undefined;
  private readonly target = byId<HTMLSelectElement>("target");
  private readonly batch: Uint16Array;
  private readonly label: Uint16Array;
  private cells: Uint32Array = new Uint32Array();
  private kinds: [number, number, number][] = []; // label, batch and how many of the cells
  private what = "";
  private turn = 0;
  private answer: Answer | undefined;

  constructor(
    private readonly payload: Payload,
    private readonly genes: Genes,
    private readonly showGene: (gene: number) => void,
  ) {
    const { header } = payload;
    this.decoder = new Decoder(payload);
    this.batch = payload.get("batch") as Uint16Array;
    this.label = payload.get("label") as Uint16Array;
    this.target.append(...header.batches.map((name, i) => option(name, String(i))));
    this.target.append(option("population mean: no batch effect", "-1"));
    this.target.addEventListener("change", () => void this.run());
    byId("save").addEventListener("click", () => this.save());
    if (payload.has("genomap")) {
      const places = payload.get("genomap") as Uint16Array;
      const picture = (id: string, kind: "sequential" | "diverging") =>
        new Genomap(byId(id), byId(`${id}-gene`), places, header.whatif!.shape!, header.genes, kind);
      this.pictures = {
        own: picture("own", "sequential"),
        there: picture("there", "sequential"),
        change: picture("change", "diverging"),
      };
    }
    byId("pictures").hidden = !this.pictures;
  }

  /** Ask for cells; `what` names them. */
  select(cells: Uint32Array, what: string): void {
    this.cells = cells;
    this.what = what;
    const kinds = new Map<number, [number, number, number]>();
    for (const cell of cells) {
      const [label, batch] = [this.label[cell]!, this.batch[cell]!];
      const kind = kinds.get(label * 65536 + batch);
      if (kind) kind[2]++;
      else kinds.set(label * 65536 + batch, [label, batch, 1]);
    }
    this.kinds = [...kinds.values()];
    if (cells.length) this.elsewhere();
    void this.run();
  }

  /** Draw the answer again, in the colours of a page that turned dark or light. */
  redraw(): void {
    if (this.answer) this.draw(this.answer);
  }

  /** Where all cells are from the target already, take the batch that has most cells of their label. */
  private elsewhere(): void {
    const own = new Set(Array.from(this.cells, (cell) => this.batch[cell]!));
    if (own.size > 1 || !own.has(Number(this.target.value))) return;
    const counts = this.payload.get("counts");
    const { batches } = this.payload.header;
    const label = this.label[this.cells[0]!]!;
    const cellsIn = (b: number) => (label === NONE ? 0 : counts[label * batches.length + b]!);
    const others = batches.map((_, b) => b).filter((b) => !own.has(b));
    if (!others.length) this.target.value = "-1";
    else this.target.value = String(others.reduce((best, b) => (cellsIn(b) > cellsIn(best) ? b : best)));
  }

  private async run(): Promise<void> {
    const turn = ++this.turn;
    const stop = () => turn !== this.turn;
    this.answer = undefined;
    delete byId("result").dataset["done"];
    byId("result").hidden = !this.cells.length;
    byId("hint").hidden = !!this.cells.length;
    byId("status").textContent = "";
    if (!this.cells.length) return;
    try {
      await this.answered(turn, stop);
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
    }
  }

  private async answered(turn: number, stop: () => boolean): Promise<void> {
    const started = performance.now();
    const target = Number(this.target.value);
    const name = target < 0 ? "the population mean" : this.payload.header.batches[target]!;
    const cells = drawn(this.cells, MOST);
    const own = this.codes(cells);
    const there = Int32Array.from(own, () => target);
    this.warn(target, name);
    const here = await this.decoder.mean(cells, own, stop);
    const shown = await this.decoder.mean(cells, there, stop);
    const answer: Answer = { target: name, own: here, there: shown, change: shown.map((x, g) => x - here[g]!) };
    if (stop()) return;
    this.answer = answer;
    this.draw(answer);
    this.table(answer, target, "computing");
    const ms = performance.now() - started;
    const top = this.order(answer)[0]!;
    const of = cells.length < this.cells.length ? ` A mean over ${count(cells.length)} of them, drawn at random.` : "";
    const most = `Largest change: ${this.payload.header.genes[top]} ${number(answer.change[top]!, true)}.`;
    byId("status").textContent = `${this.what}, as if from ${name}. ${most}${of}`;
    byId("result").dataset["ms"] = ms.toFixed(0);
    await pause();
    const few = drawn(cells, MOST_DRAWN);
    const ownFew = this.codes(few);
    const { low, high } = await this.decoder.interval(few, ownFew, Int32Array.from(ownFew, () => target), stop);
    if (stop()) return;
    answer.low = low.map((value, g) => value + answer.change[g]!);
    answer.high = high.map((value, g) => value + answer.change[g]!);
    this.table(answer, target, few.length < cells.length ? `width from ${few.length} of the cells` : "");
    byId("result").dataset["done"] = String(turn);
    byId("result").dataset["msInterval"] = (performance.now() - started).toFixed(0);
  }

  private codes(cells: Uint32Array): Int32Array {
    return Int32Array.from(cells, (cell) => (this.batch[cell] === NONE ? -1 : this.batch[cell]!));
  }

  /** Say what speaks against believing it. */
  private warn(target: number, name: string): void {
    const { header } = this.payload;
    const counts = this.payload.get("counts");
    const nBatches = header.batches.length;
    const seen = (label: number, batch: number) => counts[label * nBatches + batch]! > 0;
    const labels = [...new Set(Array.from(this.cells, (cell) => this.label[cell]!))].filter((k) => k !== NONE);
    const batches = [...new Set(this.codes(this.cells))].filter((b) => b >= 0);
    const said: [string, string][] = [];
    if (target < 0) {
      said.push(["note", "The population mean is a point of comparison without any batch effect. No cell was ever seen there."]);
    } else if (!header.label_key) {
      said.push(["note", "The run had no labels, so it cannot be said whether such cells were ever seen in that batch."]);
    } else {
      const unseen = labels.filter((k) => !seen(k, target)).map((k) => header.labels[k]!);
      if (unseen.length) {
        said.push(["note", `${listed(unseen)} ${unseen.length > 1 ? "were" : "was"} never seen in ${name}: this is an extrapolation, a guess that no cell of these data backs.`]);
      }
      const shared = (b: number) => header.labels.some((_, k) => seen(k, b) && seen(k, target));
      const apart = batches.filter((b) => b !== target && !shared(b)).map((b) => header.batches[b]!);
      if (apart.length) {
        said.push(["note", `${listed(apart)} and ${name} share no label: what is batch and what is label cannot be told apart between them.`]);
      }
      said.push(...this.trust(labels.filter((k) => seen(k, target)), target, name));
    }
    if (batches.length === 1 && batches[0] === target) {
      said.unshift(["fine", `These cells are from ${name} already, so nothing changes.`]);
    }
    byId("warnings").replaceChildren(...said.map(([kind, words]) => make("li", words, { class: kind })));
  }

  /** Repeat what the check on held-out cells said of the labels in the target. */
  private trust(labels: number[], target: number, name: string): [string, string][] {
    const words = new Map(this.payload.header.trust.filter(([, b]) => b === target).map(([k, , word]) => [k, word]));
    const by = new Map<string, string[]>();
    for (const k of labels) {
      const word = words.get(k) ?? "";
      by.set(word, [...(by.get(word) ?? []), this.payload.header.labels[k]!]);
    }
    const said: Record<string, string> = {
      good: "predictions agreed well with held-out cells: fit to rank genes by",
      some: "predictions agreed somewhat with held-out cells: trust the direction of strong changes only",
      none: "predictions did not agree with held-out cells: draw no conclusion",
      "": "the prediction was not checked on held-out cells: take it as a guess",
    };
    return [...by].map(([word, names]) => [
      word === "good" ? "fine" : "note",
      `${listed(names)} in ${name}: ${said[word] ?? "too few held-out cells to check the prediction: take it as a guess"}.`,
    ]);
  }

  private draw(answer: Answer): void {
    if (!this.pictures) return;
    const most = Math.max(upper(answer.own), upper(answer.there)) || 1;
    const far = upper(answer.change.map(Math.abs)) || 1e-6;
    this.pictures.own.draw(answer.own, most, `Picture of genes in their own batch, 0 to ${number(most)} log1p CP10k.`);
    this.pictures.there.draw(answer.there, most, `Picture of genes as if from ${answer.target}, on the same scale.`);
    this.pictures.change.draw(answer.change, far, `Change of each gene, from −${number(far)} to +${number(far)}.`);
    byId("there-title").textContent = `As if from ${answer.target}`;
    for (const id of ["own", "there"]) byId(`${id}-most`).textContent = `${number(most)} and more`;
    byId("change-least").textContent = `−${number(far)}`;
    byId("change-most").textContent = `+${number(far)}`;
    bar(byId("own-bar"), "sequential");
    bar(byId("there-bar"), "sequential");
    bar(byId("change-bar"), "diverging");
  }

  private order(answer: Answer): number[] {
    const size = (g: number) => Math.abs(answer.change[g]!);
    return Array.from(answer.change.keys()).sort((a, b) => size(b) - size(a) || a - b);
  }

  private table(answer: Answer, target: number, note: string): void {
    const rows = this.order(answer)
      .slice(0, TOP)
      .map((g) => {
        const row = make("tr");
        const head = make("th", "", { scope: "row" });
        const name = this.payload.header.genes[g]!;
        if (this.genes.measured) {
          const button = make("button", name, { type: "button", title: "Colour the maps by this gene" });
          button.addEventListener("click", () => this.showGene(g));
          head.append(button);
        } else head.textContent = name;
        const between = answer.low ? `${number(answer.low[g]!, true)} to ${number(answer.high![g]!, true)}` : "…";
        const unsure = answer.low && answer.low[g]! <= 0 && answer.high![g]! >= 0;
        if (unsure) row.className = "unsure";
        const cells = [number(answer.change[g]!, true), between, number(this.seen(g, target), true)];
        cells.push(number(answer.own[g]!), number(answer.there[g]!), number(this.genes.mean(g, this.cells)));
        row.append(head, ...cells.map((text) => make("td", text)));
        return row;
      });
    byId("genes").replaceChildren(...rows);
    byId("genes-note").textContent = note ? `(5–95 %: ${note})` : "";
  }

  /** Give the seen change: mean of each cell's label in the target less its mean in the cell's own batch. */
  private seen(gene: number, target: number): number {
    if (target < 0) return NaN;
    let sum = 0;
    let n = 0;
    for (const [label, batch, cells] of this.kinds) {
      const change = this.genes.ofPair(gene, label, target) - this.genes.ofPair(gene, label, batch);
      if (Number.isNaN(change)) continue;
      sum += cells * change;
      n += cells;
    }
    return n ? sum / n : NaN;
  }

  private save(): void {
    const { answer } = this;
    if (!answer) return;
    const target = Number(this.target.value);
    const names = this.payload.header.genes;
    const lines = ["gene,own_batch,as_if,change,q05,q95,measured,seen_change"];
    for (const g of this.order(answer)) {
      const { own, there, change, low, high } = answer;
      const numbers = [own[g]!, there[g]!, change[g]!, low?.[g] ?? NaN, high?.[g] ?? NaN];
      numbers.push(this.genes.mean(g, this.cells), this.seen(g, target));
      const name = `"${names[g]!.replaceAll('"', '""')}"`;
      lines.push([name, ...numbers.map((x) => (Number.isNaN(x) ? "" : x.toPrecision(6)))].join(","));
    }
    download("what-if.csv", lines.join("\n") + "\n");
  }
}

/** Draw some of many cells, the same for the same cells. */
function drawn(cells: Uint32Array, n: number): Uint32Array {
  if (cells.length <= n) return cells;
  const uniform = uniforms(cells.length);
  const left = cells.slice();
  for (let i = 0; i < n; i++) {
    const j = i + Math.floor(uniform() * (left.length - i));
    [left[i], left[j]] = [left[j]!, left[i]!];
  }
  return left.slice(0, n).sort();
}

/** Give the value that 0.5 % of genes exceed: one gene must not take all the colour. */
function upper(values: Float32Array): number {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.ceil(0.995 * (sorted.length - 1))]!;
}

function listed(names: string[]): string {
  const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
  return names.slice(0, 4).join(", ") + more;
}
