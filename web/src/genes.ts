// Measured genes of the cells in the page, and observed means per label and batch of the run.

import { NONE, type Payload } from "./payload";

export class Genes {
  private readonly kept = new Map<number, Float32Array>();
  readonly measured: boolean;
  private readonly pairOf = new Map<number, number>(); // label × batch → row of the means
  private readonly means: Float32Array | undefined;
  private readonly heldOut: Uint8Array | undefined;

  constructor(
    private readonly payload: Payload,
    private readonly nCells: number,
  ) {
    this.measured = payload.has("gene_cells");
    if (!payload.has("means")) return;
    this.means = payload.floats("means");
    this.heldOut = payload.get("held_out") as Uint8Array;
    const pairs = payload.get("pairs");
    for (let i = 0; i < pairs.length / 2; i++) this.pairOf.set(this.key(pairs[2 * i]!, pairs[2 * i + 1]!), i);
  }

  private key(label: number, batch: number): number {
    return label * this.payload.header.batches.length + batch;
  }

  /** Return log1p CP10k of a gene in all cells, in steps of 1 / 255 of its largest value. */
  values(gene: number): Float32Array {
    const known = this.kept.get(gene);
    if (known) return known;
    const found = new Float32Array(this.nCells);
    const start = this.payload.get("gene_start");
    const coded = this.payload.get("gene_cells");
    const values = this.payload.get("gene_values");
    const unit = this.payload.get("gene_most")[gene]! / 255;
    let at = this.payload.get("gene_byte")[gene]!;
    let cell = 0;
    for (let i = start[gene]!; i < start[gene + 1]!; i++) {
      while (coded[at] === 255) {
        cell += 255;
        at++;
      }
      cell += coded[at++]!;
      found[cell] = values[i]! * unit;
    }
    if (this.kept.size > 200) this.kept.clear();
    this.kept.set(gene, found);
    return found;
  }

  /** Return the mean of a gene over cells of the page; NaN if the page holds no measured genes. */
  mean(gene: number, cells: Uint32Array): number {
    if (!this.measured) return NaN;
    const values = this.values(gene);
    return cells.reduce((sum, cell) => sum + values[cell]!, 0) / cells.length;
  }

  private row(label: number, batch: number): number | undefined {
    return label === NONE || batch === NONE ? undefined : this.pairOf.get(this.key(label, batch));
  }

  /** Return whether the mean of a label in a batch is over held-out cells only. */
  isHeldOut(label: number, batch: number): boolean {
    const row = this.row(label, batch);
    return row !== undefined && this.heldOut![row] === 1;
  }

  /** Return the observed mean of a label in a batch; NaN if there are no cells. */
  ofPair(gene: number, label: number, batch: number): number {
    const row = this.row(label, batch);
    if (!this.means || row === undefined) return NaN;
    return this.means[row * this.payload.header.genes.length + gene]!;
  }
}
