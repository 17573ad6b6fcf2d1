// What-if: counterfactuals of the selected cells from the decoder, with the observed change.

import { bar, count, number } from "./colours";
import { Decoder, Stopped, uniforms } from "./decoder";
import { byId, download, make, option } from "./dom";
import type { Genes } from "./genes";
import { Genomap } from "./genomap";
import { NONE, pause, type Payload } from "./payload";

const TOP = 15;
const MOST = 2000; // most cells for a mean
const MOST_DRAWN = 30; // most cells for the width of an interval
const FEW = 10; // fewer cells give an uncertain mean
const LARGEST = Math.log1p(10_000); // of a gene with all counts of its cell
const BUSY = 30; // milliseconds of work before the browser gets its turn

interface Answer {
  cells: Uint32Array;
  kinds: [number, number, number][];
  what: string;
  code: number; // of the target, -1 for the population mean
  target: string;
  nMean: number;
  nDrawn?: number;
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
  private kinds: [number, number, number][] = []; // label, batch and number of selected cells
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
    this.target.append(option("population mean", "-1"));
    this.target.addEventListener("change", () => void this.run());
    byId("save").addEventListener("click", () => void this.save());
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

  /** Take the selected cells; `what` describes them. */
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

  /** Draw the answer again after the page turned dark or light. */
  redraw(): void {
    if (this.answer) this.draw(this.answer);
  }

  /** If all cells are from the target already, choose the batch with most cells of their label. */
  private elsewhere(): void {
    const own = new Set(this.codes(this.cells));
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
    if (!this.cells.length) return byId("warnings").replaceChildren();
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
    const answer: Answer = {
      ...{ cells: this.cells, kinds: this.kinds, what: this.what, code: target, target: name, nMean: cells.length },
      ...{ own: here, there: shown, change: shown.map((x, g) => x - here[g]!) },
    };
    if (stop()) return;
    this.answer = answer;
    this.draw(answer);
    this.table(answer);
    this.impossible(answer);
    const ms = performance.now() - started;
    const top = this.order(answer)[0]!;
    const of = cells.length < this.cells.length ? ` Means are over ${count(cells.length)} of them, drawn at random.` : "";
    const most = `Largest change: ${this.payload.header.genes[top]} ${number(answer.change[top]!, true)}.`;
    byId("status").textContent = `${this.what}, as if from ${name}. ${most}${of}`;
    byId("result").dataset["ms"] = ms.toFixed(0);
    await pause();
    const few = drawn(cells, MOST_DRAWN);
    const ownFew = this.codes(few);
    const half = await this.decoder.halfWidth(few, ownFew, Int32Array.from(ownFew, () => target), stop);
    if (stop()) return;
    answer.nDrawn = few.length;
    answer.low = answer.change.map((value, g) => value - half[g]!);
    answer.high = answer.change.map((value, g) => value + half[g]!);
    this.intervals(answer);
    byId("result").dataset["done"] = String(turn);
    byId("result").dataset["msInterval"] = (performance.now() - started).toFixed(0);
  }

  /** Return the batch of each cell for the decoder: -1, the population mean, if it is not known. */
  private codes(cells: Uint32Array): Int32Array {
    return Int32Array.from(cells, (cell) => (this.batch[cell] === NONE ? -1 : this.batch[cell]!));
  }

  /** Show what limits the trust in the answer. */
  private warn(target: number, name: string): void {
    const { header } = this.payload;
    const counts = this.payload.get("counts");
    const nBatches = header.batches.length;
    const seen = (label: number, batch: number) => counts[label * nBatches + batch]! > 0;
    const labels = [...new Set(Array.from(this.cells, (cell) => this.label[cell]!))].filter((k) => k !== NONE);
    const own = this.codes(this.cells);
    const batches = [...new Set(own)].filter((b) => b >= 0);
    const all = this.cells.length;
    const unknown = own.filter((b) => b < 0).length;
    const unlabelled = this.cells.filter((cell) => this.label[cell] === NONE).length;
    const said: [string, string][] = [];
    if (unknown) {
      said.push(["note", `Selected cells with no batch known to the model: ${count(unknown)} of ${count(all)}. The population mean is used instead of their own batch.`]);
    }
    byId("own-title").textContent = !unknown
      ? "In their own batch"
      : unknown < all
        ? "In their own batch, or at the population mean if the model does not know it"
        : "At the population mean: the model does not know their batch";
    if (unlabelled) {
      said.push(["note", `Selected cells without a label: ${count(unlabelled)} of ${count(all)}. It is not known whether such cells were seen in another batch, and no prediction for them was checked.`]);
    }
    if (target < 0) {
      said.push(["note", "The population mean has all batch effects at zero. It is a reference, not the average of the batches: genes may lie outside the range of all batches, and no cell was ever seen there."]);
    } else if (!header.label_key) {
      said.push(["note", "The run had no labels, so it is not known whether such cells were seen in that batch."]);
      said.push(...this.trust([0], target, name)); // the check was of all cells together
    } else {
      const unseen = labels.filter((k) => !seen(k, target)).map((k) => header.labels[k]!);
      if (unseen.length) {
        said.push(["note", `${listed(unseen)} ${unseen.length > 1 ? "were" : "was"} never seen in ${name}: this is an extrapolation, which no cell of these data supports. The observed change is empty for this selection.`]);
      }
      const few = labels.filter((k) => seen(k, target) && counts[k * nBatches + target]! < FEW).map((k) => header.labels[k]!);
      if (few.length) {
        said.push(["note", `${listed(few)}: fewer than ${FEW} cells were seen in ${name}, so the observed change is itself uncertain.`]);
      }
      const shared = (b: number) => header.labels.some((_, k) => seen(k, b) && seen(k, target));
      const apart = batches.filter((b) => b !== target && !shared(b)).map((b) => header.batches[b]!);
      if (apart.length) {
        said.push(["note", `${listed(apart)} and ${name} share no label: batch and label cannot be told apart between them.`]);
      }
      said.push(...this.trust(labels.filter((k) => seen(k, target)), target, name));
    }
    const there = own.filter((b) => b === target).length;
    if (there === all) {
      said.splice(0, said.length, ["fine", `These cells are ${target < 0 ? "at" : "from"} ${name} already, so nothing changes.`]);
    } else if (there && target >= 0) {
      said.unshift(["note", `${count(there)} of ${count(all)} selected cells are from ${name} already. They do not change, but they are part of the means below.`]);
    }
    if (header.unusable) said.unshift(["note", header.unusable]);
    byId("warnings").replaceChildren(...said.map(([kind, words]) => make("li", words, { class: kind })));
  }

  /** Warn of predicted means outside the range of log1p CP10k. */
  private impossible({ there }: Answer): void {
    const n = there.filter((x) => x < -0.1 || x > LARGEST).length;
    if (!n) return;
    const words = `Impossible means, below 0 or above ${number(LARGEST)}, are predicted for ${count(n)} of ${count(there.length)} genes: the model extrapolates.`;
    byId("warnings").append(make("li", words, { class: "note" }));
  }

  /** Return the result of the check on held-out cells for the labels in the target. */
  private trust(labels: number[], target: number, name: string): [string, string][] {
    const checked = this.payload.header.trust.filter(([, b]) => b === target);
    const words = new Map(checked.map(([k, , word, against]) => [k, `${word}|${against}`]));
    const { labels: names, label_key, words: said, unchecked } = this.payload.header;
    const by = new Map<string, string[]>();
    for (const k of labels) {
      const word = words.get(k) ?? "";
      by.set(word, [...(by.get(word) ?? []), label_key ? names[k]! : "All cells together"]);
    }
    return [...by].map(([key, names]) => [
      key.startsWith("good|") ? "fine" : "note",
      `${listed(names)} in ${name}: ${said[key] ?? unchecked}`,
    ]);
  }

  private draw(answer: Answer): void {
    if (!this.pictures) return;
    const most = Math.max(upper(answer.own), upper(answer.there)) || 1;
    const far = upper(answer.change.map(Math.abs)) || 1e-6;
    this.pictures.own.draw(answer.own, most, `${byId("own-title").textContent}: picture of genes, 0 to ${number(most)} log1p CP10k.`);
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

  /** Return what the interval and the observed change are based on. */
  private notes(answer: Answer): string {
    return [this.intervalNote(answer), this.seenNote(answer)].filter(Boolean).join(" ");
  }

  private seenNote(answer: Answer): string {
    const source = this.seenIn(answer);
    return source && `(observed change: in ${source === "all cells" ? "all cells, training cells included" : source})`;
  }

  /** Return the cells that the observed change is based on; empty if there is none. */
  private seenIn(answer: Answer): string {
    if (Number.isNaN(this.seen(0, answer))) return "";
    const heldOut = (label: number, batch: number) => this.genes.isHeldOut(label, batch);
    const all = answer.kinds.every(([label, batch]) => heldOut(label, batch) && heldOut(label, answer.code));
    return all ? "held-out cells" : "all cells";
  }

  private intervalNote({ nDrawn, nMean }: Answer): string {
    if (nDrawn === undefined) return "(5–95 %: computing)";
    const said = [];
    if (this.payload.header.whatif!.factor === null) said.push("not calibrated");
    if (this.payload.header.whatif!.kind === "random") {
      said.push("decoder's effects only, so they may be too narrow; scmedley project --draws includes the encoder's");
    }
    if (nDrawn < nMean) said.push(`width from ${nDrawn} of the cells`);
    return said.length ? `(5–95 %: ${said.join("; ")})` : "";
  }

  private table(answer: Answer): void {
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
        const cells = [number(answer.change[g]!, true), "…", number(this.seen(g, answer), true)];
        cells.push(number(answer.own[g]!), number(answer.there[g]!), number(this.genes.mean(g, answer.cells)));
        row.append(head, ...cells.map((text) => make("td", text)));
        return row;
      });
    byId("genes").replaceChildren(...rows);
    byId("genes-note").textContent = this.notes(answer);
  }

  /** Fill the intervals into the existing rows, so that the focus is kept. */
  private intervals(answer: Answer): void {
    const order = this.order(answer);
    byId<HTMLTableSectionElement>("genes").querySelectorAll("tr").forEach((row, i) => {
      const [low, high] = [answer.low![order[i]!]!, answer.high![order[i]!]!];
      row.cells[2]!.textContent = `${number(low, true)} to ${number(high, true)}`;
      row.classList.toggle("unsure", low <= 0 && high >= 0);
    });
    byId("genes-note").textContent = this.notes(answer);
  }

  /**
   * Return the observed change: the mean of each cell's label in the target minus its mean in the cell's own batch;
   * NaN unless all of these pairs were seen.
   */
  private seen(gene: number, { kinds, code, cells }: Answer): number {
    if (code < 0) return NaN;
    let sum = 0;
    for (const [label, batch, n] of kinds) {
      sum += n * (this.genes.ofPair(gene, label, code) - this.genes.ofPair(gene, label, batch));
    }
    return sum / cells.length;
  }

  /** Save all genes, with pauses for the browser; each row holds the selection and the target. */
  private async save(): Promise<void> {
    const { answer } = this;
    const button = byId("save");
    if (!answer || button.ariaDisabled === "true") return;
    button.ariaDisabled = "true"; // a disabled button would lose the focus
    const names = this.payload.header.genes;
    const { own, there, change, low, high, cells } = answer;
    const asked = [answer.what, answer.target].map(quoted);
    asked.push(...[cells.length, answer.nMean, answer.nDrawn ?? ""].map(String));
    asked.push(quoted(this.seenIn(answer)));
    const about = "selection,as_if_from,cells,cells_of_means,cells_of_intervals,seen_change_of";
    const lines = [`gene,own_batch,as_if,change,q05,q95,measured,seen_change,${about}`];
    let until = performance.now() + BUSY;
    for (const g of this.order(answer)) {
      const numbers = [own[g]!, there[g]!, change[g]!, low?.[g] ?? NaN, high?.[g] ?? NaN];
      numbers.push(this.genes.mean(g, cells), this.seen(g, answer));
      const written = numbers.map((x) => (Number.isNaN(x) ? "" : x.toPrecision(6)));
      lines.push([quoted(names[g]!), ...written, ...asked].join(","));
      if (performance.now() < until) continue;
      await pause();
      until = performance.now() + BUSY;
    }
    download("what-if.csv", lines.join("\n") + "\n");
    button.ariaDisabled = "false";
  }
}

/** Quote a text, after an apostrophe if a spreadsheet would read it as a formula. */
function quoted(text: string): string {
  const plain = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${plain.replaceAll('"', '""')}"`;
}

/** Draw a random sample of cells, the same for the same cells. */
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

/** Return the value that 0.5 % of genes exceed, so that one gene does not use the whole scale. */
function upper(values: Float32Array): number {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.ceil(0.995 * (sorted.length - 1))]!;
}

function listed(names: string[]): string {
  const more = names.length > 4 ? ` and ${names.length - 4} more` : "";
  return names.slice(0, 4).join(", ") + more;
}
