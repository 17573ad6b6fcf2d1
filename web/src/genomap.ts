// A cell as a picture: one pixel a gene, at the place that the model's genomap gives it.

import { number, scale } from "./colours";

export class Genomap {
  private values: Float32Array | undefined;
  private readonly geneAt: Int32Array;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly readout: HTMLElement,
    private readonly places: Uint16Array,
    private readonly shape: [number, number],
    private readonly genes: string[],
    private readonly kind: "sequential" | "diverging",
  ) {
    const [height, width] = shape;
    this.geneAt = new Int32Array(height * width).fill(-1);
    genes.forEach((_, g) => (this.geneAt[this.pixel(g)] = g));
    canvas.width = width;
    canvas.height = height;
    canvas.addEventListener("pointermove", (event) => this.read(event));
    canvas.addEventListener("pointerleave", () => (this.readout.textContent = ""));
  }

  private pixel(gene: number): number {
    return this.places[gene]! * this.shape[1] + this.places[this.genes.length + gene]!;
  }

  /** Draw values; colours run from 0 to `most`, or from -`most` to `most` where they diverge. */
  draw(values: Float32Array, most: number, alt: string): void {
    this.values = values;
    this.canvas.setAttribute("aria-label", alt);
    const context = this.canvas.getContext("2d")!;
    const image = context.createImageData(this.canvas.width, this.canvas.height);
    const colour = scale(this.kind);
    for (let g = 0; g < values.length; g++) {
      const share = values[g]! / (most || 1);
      image.data.set([...colour(this.kind === "diverging" ? (share + 1) / 2 : share), 255], 4 * this.pixel(g));
    }
    context.putImageData(image, 0, 0);
  }

  private read(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.shape[0]);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.shape[1]);
    const gene = this.geneAt[row * this.shape[1] + column] ?? -1;
    const value = gene < 0 ? undefined : this.values?.[gene];
    this.readout.textContent =
      value === undefined ? "" : `${this.genes[gene]} ${number(value, this.kind === "diverging")}`;
  }
}
