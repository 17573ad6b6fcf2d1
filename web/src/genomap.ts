// A cell as a picture: each gene is one pixel of the model's genomap.

import { number, scale } from "./colours";

export class Genomap {
  private values: Float32Array | undefined;
  private readonly geneAt: Int32Array;
  private at: [number, number]; // the pixel that the arrow keys are on

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
    this.at = [height >> 1, width >> 1];
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("keydown", (event) => this.step(event));
    canvas.addEventListener("focus", () => this.read(...this.at));
    canvas.addEventListener("blur", () => (this.readout.textContent = ""));
    canvas.addEventListener("pointerleave", () => (this.readout.textContent = ""));
  }

  private pixel(gene: number): number {
    return this.places[gene]! * this.shape[1] + this.places[this.genes.length + gene]!;
  }

  /** Draw values; the scale runs from 0 to `most`, or from -`most` to `most` if it diverges. */
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

  private point(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const share = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    this.read(Math.floor(share[0]! * this.shape[0]), Math.floor(share[1]! * this.shape[1]));
  }

  private step(event: KeyboardEvent): void {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    this.at = this.at.map((x, i) => Math.min(Math.max(x + step[i]!, 0), this.shape[i]! - 1)) as [number, number];
    this.read(...this.at);
  }

  private read(row: number, column: number): void {
    const gene = this.geneAt[row * this.shape[1] + column] ?? -1;
    const value = gene < 0 ? undefined : this.values?.[gene];
    this.readout.textContent =
      value === undefined ? "" : `${this.genes[gene]} ${number(value, this.kind === "diverging")}`;
  }
}
