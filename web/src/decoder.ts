// The trained decoder: reconstructions and counterfactuals (scmedley/models/counterfactual.py).
//
// Each block: h = h W + b; SELU if pre_selu; h * s + t; h * (1 + gamma_b) + beta_b; SELU except in the last block.
// The last block is linear, so the mean over the cells of a batch is taken before it.

import { pause, type Payload } from "./payload";

const ALPHA = 1.6732632423543772;
const SCALE = 1.0507009873554805;
const BUSY = 30; // milliseconds of work before the browser gets its turn
const DRAWS = 50;
const WIDE = 1.645; // standard deviations from the mean of a normal distribution to 5 % and 95 %

interface Effects {
  gamma: Float32Array;
  gamma_sd: Float32Array;
  beta: Float32Array;
  beta_sd: Float32Array;
}

interface Block extends Effects {
  w: Float32Array;
  b: Float32Array;
  s: Float32Array;
  t: Float32Array;
  inputs: number;
  outputs: number;
  preSelu: boolean;
}

/** One batch's effects on one block: factor 1 + gamma, and beta. */
type Row = { factor: Float32Array; beta: Float32Array };
/** Returns the effects of a batch; -1 is the population mean. */
type Table = (block: number, batch: number) => Row;

export class Stopped extends Error {}

export class Decoder {
  readonly genes: number;
  private readonly blocks: Block[];
  private readonly latent: Float32Array;
  private readonly centre: Float32Array;
  private readonly span: Float32Array;
  private readonly wide: number;
  private until = 0; // when the browser gets its next turn

  constructor(payload: Payload) {
    this.latent = payload.floats("latent");
    this.blocks = payload.header.whatif!.pre_selu.map((preSelu, i) => {
      const [inputs, outputs] = payload.shape(`w${i}`) as [number, number];
      const get = (name: string) => payload.floats(name + i);
      const effects = { gamma: get("gamma"), gamma_sd: get("gamma_sd"), beta: get("beta"), beta_sd: get("beta_sd") };
      return { w: get("w"), b: get("b"), s: get("s"), t: get("t"), ...effects, inputs, outputs, preSelu };
    });
    this.wide = WIDE * (payload.header.whatif!.factor ?? 1);
    this.genes = this.blocks[this.blocks.length - 1]!.outputs;
    const scale = payload.floats("scale");
    this.centre = scale.subarray(0, this.genes);
    this.span = scale.subarray(this.genes);
  }

  /** Return the mean of cells, each in its batch of `batches`, in log1p CP10k. */
  async mean(cells: Uint32Array, batches: Int32Array, stop: () => boolean): Promise<Float32Array> {
    const first = await this.first(cells, stop);
    const found = await this.decoded(first, batches, this.means(), stop);
    return found.map((value, g) => value * this.span[g]! + this.centre[g]!);
  }

  /**
   * Return the half-width of the 5-95 % interval of the change of the mean from `own` to `target` batches: 1.645
   * standard deviations over draws of the effects, times the model's factor (scmedley/models/interval.py). Quantiles
   * of so few draws would be noisier, and too narrow (see README.md).
   */
  async halfWidth(
    cells: Uint32Array,
    own: Int32Array,
    target: Int32Array,
    stop: () => boolean,
  ): Promise<Float32Array> {
    const first = await this.first(cells, stop);
    const mean = new Float64Array(this.genes);
    const squares = new Float64Array(this.genes); // of distances from the mean (Welford)
    for (let draw = 0; draw < DRAWS; draw++) {
      const table = this.drawn(draw);
      const here = await this.decoded(first, own, table, stop);
      const there = await this.decoded(first, target, table, stop);
      for (let g = 0; g < this.genes; g++) {
        const change = there[g]! - here[g]!;
        const away = change - mean[g]!;
        mean[g]! += away / (draw + 1);
        squares[g]! += away * (change - mean[g]!);
      }
    }
    return this.span.map((span, g) => this.wide * span * Math.sqrt(squares[g]! / (DRAWS - 1)));
  }

  /** Return the first product of every cell. No batch effect enters it, so all batches and draws share it. */
  private async first(cells: Uint32Array, stop: () => boolean): Promise<Float32Array> {
    const block = this.blocks[0]!;
    const found = new Float32Array(cells.length * block.outputs);
    for (let i = 0; i < cells.length; i++) {
      const from = cells[i]! * block.inputs;
      const out = found.subarray(i * block.outputs, (i + 1) * block.outputs);
      product(this.latent.subarray(from, from + block.inputs), block, out);
      if (performance.now() > this.until) await this.turn(stop);
    }
    return found;
  }

  /** Return the mean of the decoded cells, in the scaled unit. */
  private async decoded(
    first: Float32Array,
    batches: Int32Array,
    table: Table,
    stop: () => boolean,
  ): Promise<Float32Array> {
    const last = this.blocks.length - 1;
    const sums = new Map<number, Float64Array>(); // of what the last block reads, for each batch
    const hidden = this.blocks.map((block) => new Float32Array(block.outputs));
    const width = this.blocks[0]!.outputs;
    for (let i = 0; i < batches.length; i++) {
      const batch = batches[i]!;
      let h = first.subarray(i * width, (i + 1) * width);
      for (let k = 0; k < last; k++) {
        const block = this.blocks[k]!;
        const out = hidden[k]!;
        if (k > 0) product(h, block, out);
        else out.set(h);
        finish(out, block, table(k, batch));
        for (let o = 0; o < out.length; o++) out[o] = selu(out[o]!);
        h = out;
      }
      let sum = sums.get(batch);
      if (!sum) sums.set(batch, (sum = new Float64Array(h.length)));
      for (let o = 0; o < h.length; o++) sum[o]! += h[o]!;
      if (performance.now() > this.until) await this.turn(stop);
    }
    const total = new Float32Array(this.genes);
    const block = this.blocks[last]!;
    const out = hidden[last]!;
    for (const [batch, sum] of sums) {
      const share = batches.reduce((n, other) => n + (other === batch ? 1 : 0), 0);
      if (last > 0) product(Float32Array.from(sum, (value) => value / share), block, out);
      else for (let o = 0; o < out.length; o++) out[o] = sum[o]! / share;
      finish(out, block, table(last, batch));
      for (let g = 0; g < total.length; g++) total[g]! += (out[g]! * share) / batches.length;
      if (performance.now() > this.until) await this.turn(stop);
    }
    return total;
  }

  private async turn(stop: () => boolean): Promise<void> {
    await pause();
    if (stop()) throw new Stopped();
    this.until = performance.now() + BUSY;
  }

  /** Return the posterior means of the effects. */
  private means(): Table {
    return this.table((block, name, batch) => {
      const from = batch * block.outputs;
      return block[name].slice(from, from + block.outputs);
    });
  }

  /** Return one posterior draw of all effects; a number gives the same draw for all cells and batches. */
  private drawn(draw: number): Table {
    return this.table((block, name, batch, seed) => {
      const normal = normals(((draw * 1009 + batch) * 31 + seed) >>> 0);
      const from = batch * block.outputs;
      const sd = name === "gamma" ? block.gamma_sd : block.beta_sd;
      return block[name].slice(from, from + block.outputs).map((mean, o) => mean + sd[from + o]! * normal());
    });
  }

  private table(
    get: (block: Block, name: "gamma" | "beta", batch: number, seed: number) => Float32Array,
  ): Table {
    const kept = new Map<string, Row>();
    return (index, batch) => {
      const key = `${index} ${batch}`;
      let row = kept.get(key);
      if (!row) {
        const block = this.blocks[index]!;
        const none = batch < 0;
        const gamma = none ? new Float32Array(block.outputs) : get(block, "gamma", batch, 2 * index);
        const beta = none ? new Float32Array(block.outputs) : get(block, "beta", batch, 2 * index + 1);
        kept.set(key, (row = { factor: gamma.map((value) => 1 + value), beta }));
      }
      return row;
    };
  }
}

/** Compute out = h W + b, four inputs at a time for speed. */
function product(h: Float32Array, block: Block, out: Float32Array): void {
  out.set(block.b);
  const { w, outputs } = block;
  let i = 0;
  for (; i + 3 < h.length; i += 4) {
    const [h0, h1, h2, h3] = [h[i]!, h[i + 1]!, h[i + 2]!, h[i + 3]!];
    const at = i * outputs;
    const [to1, to2, to3] = [outputs, 2 * outputs, 3 * outputs];
    for (let o = at; o < at + outputs; o++) {
      out[o - at]! += h0 * w[o]! + h1 * w[o + to1]! + h2 * w[o + to2]! + h3 * w[o + to3]!;
    }
  }
  for (; i < h.length; i++) {
    for (let o = 0; o < outputs; o++) out[o]! += h[i]! * w[i * outputs + o]!;
  }
}

function finish(h: Float32Array, { s, t, preSelu }: Block, { factor, beta }: Row): void {
  for (let o = 0; o < h.length; o++) {
    const value = preSelu ? selu(h[o]!) : h[o]!;
    h[o] = (value * s[o]! + t[o]!) * factor[o]! + beta[o]!;
  }
}

function selu(x: number): number {
  return x > 0 ? SCALE * x : SCALE * ALPHA * Math.expm1(x);
}

/** Return a generator of uniform numbers in (0, 1): mulberry32. */
export function uniforms(seed: number): () => number {
  let state = Math.imul(seed ^ (seed >>> 16), 0x45d9f3b) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (((x ^ (x >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

/** Return a generator of standard normal numbers (Box-Muller). */
function normals(seed: number): () => number {
  const uniform = uniforms(seed);
  let spare: number | undefined;
  return () => {
    if (spare !== undefined) {
      const value = spare;
      spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}
