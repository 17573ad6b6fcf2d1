// One map of cells: the points, and how it reacts to mouse, finger, lasso and keys.

import { uniforms } from "./decoder";
import { NONE, STEPS } from "./payload";
import { Points } from "./points";

export type Mode = "lasso" | "pick" | "move";
const NEAR = 9; // largest distance of the pointer from a cell, in pixels
const BINS = 128;
const STEP = 0.1; // of the map's side, for an arrow key

export interface Heard {
  hover(cell: number, map: CellMap): void;
  pick(cell: number): void;
  lasso(cells: Uint32Array): void;
}

export class CellMap {
  readonly points: Points;
  readonly tip: HTMLElement;
  mode: Mode = "lasso";
  private readonly overlay: SVGSVGElement;
  private readonly line: SVGPolygonElement;
  private readonly ring: SVGCircleElement;
  private readonly places: Float32Array;
  private readonly drawn: Uint32Array;
  private readonly start = new Uint32Array(BINS * BINS + 1); // of each bin in `binned`
  private readonly binned: Uint32Array;
  private path: [number, number][] = [];
  private readonly fingers = new Map<number, [number, number]>();
  private moved = 0;
  private focus = -1;

  constructor(
    readonly box: HTMLElement,
    coded: Uint16Array,
    private readonly heard: Heard,
  ) {
    const n = coded.length / 2;
    this.places = Float32Array.from(coded, (value) => value / STEPS);
    const drawn: number[] = [];
    for (let i = 0; i < n; i++) if (coded[2 * i] !== NONE) drawn.push(i);
    this.binned = new Uint32Array(drawn.length);
    this.bin(drawn);
    const uniform = uniforms(1); // a random order, so that no batch hides another
    for (let i = drawn.length - 1; i > 0; i--) {
      const j = Math.floor(uniform() * (i + 1));
      [drawn[i], drawn[j]] = [drawn[j]!, drawn[i]!];
    }
    this.drawn = Uint32Array.from(drawn);
    const canvas = box.querySelector("canvas")!;
    this.points = new Points(canvas, this.places, this.drawn);
    this.overlay = box.querySelector("svg")!;
    this.line = this.overlay.querySelector("polygon")!;
    this.ring = this.overlay.querySelector("circle")!;
    this.tip = box.querySelector(".ex-tip")!;
    this.listen();
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.redraw()).observe(box);
  }

  setMode(mode: Mode): void {
    this.mode = mode;
    this.box.dataset["mode"] = mode;
  }

  /** Mark one cell, -1 for none. */
  mark(cell: number): void {
    this.focus = cell;
    this.circle();
  }

  zoom(by: number): void {
    const { view } = this.points;
    view.zoom = Math.min(60, Math.max(0.5, view.zoom * by));
    this.redraw();
  }

  whole(): void {
    this.points.view = { x: 0.5, y: 0.5, zoom: 0.94 };
    this.redraw();
  }

  /** Return the place of a cell in pixels of the box. */
  pixel(cell: number): [number, number] {
    const side = this.overlay.clientWidth;
    const { x, y, zoom } = this.points.view;
    const across = (this.places[2 * cell]! - x) * zoom * side + side / 2;
    return [across, side / 2 - (this.places[2 * cell + 1]! - y) * zoom * side];
  }

  /** Give up a line that is being drawn, and hide the name of a cell. */
  escape(): void {
    this.path = [];
    this.moved = Infinity; // so that the pointer's release picks no cell
    this.line.setAttribute("points", "");
    this.heard.hover(-1, this);
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const zoom = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[event.key];
    if (!move && !zoom && event.key !== "0") return;
    event.preventDefault();
    const { view } = this.points;
    if (zoom) return this.zoom(zoom);
    if (!move) return this.whole();
    view.x += (move[0]! * STEP) / view.zoom;
    view.y += (move[1]! * STEP) / view.zoom;
    this.redraw();
  }

  private place([across, down]: [number, number]): [number, number] {
    const side = this.overlay.clientWidth;
    const { x, y, zoom } = this.points.view;
    return [(across - side / 2) / (zoom * side) + x, (side / 2 - down) / (zoom * side) + y];
  }

  private redraw(): void {
    this.points.show();
    this.circle();
  }

  private circle(): void {
    const shown = this.focus >= 0 && this.places[2 * this.focus]! <= 1;
    this.ring.toggleAttribute("hidden", !shown);
    if (!shown) return;
    const [x, y] = this.pixel(this.focus);
    this.ring.setAttribute("cx", String(x));
    this.ring.setAttribute("cy", String(y));
  }

  private bin(cells: number[]): void {
    const of = (cell: number) => this.binOf(this.places[2 * cell]!, this.places[2 * cell + 1]!);
    for (const cell of cells) this.start[of(cell) + 1]!++;
    for (let i = 0; i < BINS * BINS; i++) this.start[i + 1]! += this.start[i]!;
    const next = this.start.slice();
    for (const cell of cells) this.binned[next[of(cell)]!++] = cell;
  }

  private binOf(x: number, y: number): number {
    const clamp = (value: number) => Math.min(BINS - 1, Math.max(0, Math.floor(value * BINS)));
    return clamp(y) * BINS + clamp(x);
  }

  /** Return the cell nearest to a pixel, -1 if none is near. */
  nearest(at: [number, number]): number {
    const [x, y] = this.place(at);
    const radius = NEAR / (this.points.view.zoom * this.overlay.clientWidth);
    let best = radius * radius;
    let found = -1;
    const low = this.binOf(x - radius, y - radius);
    const high = this.binOf(x + radius, y + radius);
    for (let row = Math.floor(low / BINS); row <= Math.floor(high / BINS); row++) {
      const from = this.start[row * BINS + (low % BINS)]!;
      const to = this.start[row * BINS + (high % BINS) + 1]!;
      for (let i = from; i < to; i++) {
        const cell = this.binned[i]!;
        const away = (this.places[2 * cell]! - x) ** 2 + (this.places[2 * cell + 1]! - y) ** 2;
        if (away < best) [best, found] = [away, cell];
      }
    }
    return found;
  }

  private listen(): void {
    const { overlay } = this;
    const at = (event: MouseEvent): [number, number] => {
      const box = overlay.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    overlay.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      if (this.mode !== "pick") overlay.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, at(event));
      this.moved = 0;
      this.path = [at(event)];
    });
    overlay.addEventListener("pointermove", (event) => {
      const before = this.fingers.get(event.pointerId);
      if (!before) return this.heard.hover(this.nearest(at(event)), this);
      const now = at(event);
      this.moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (this.mode === "move") this.pan(event.pointerId, before, now);
      if (this.mode === "lasso") this.draw(now);
      this.fingers.set(event.pointerId, now);
    });
    overlay.addEventListener("pointerup", (event) => {
      if (!this.fingers.delete(event.pointerId)) return;
      if (this.moved < 5) {
        const cell = this.nearest(at(event));
        if (cell >= 0) this.heard.pick(cell);
      } else if (this.mode === "lasso" && this.path.length > 3) {
        this.heard.lasso(this.inside());
      }
      this.line.setAttribute("points", "");
    });
    overlay.addEventListener("pointercancel", (event) => {
      this.fingers.delete(event.pointerId);
      this.line.setAttribute("points", "");
    });
    overlay.addEventListener("pointerleave", () => this.heard.hover(-1, this));
    overlay.addEventListener(
      "wheel",
      (event) => {
        if (this.mode !== "move" && !event.ctrlKey) return; // the page scrolls
        event.preventDefault();
        const [x, y] = this.place(at(event));
        this.zoom(Math.exp(-event.deltaY / 300));
        const [later, lower] = this.place(at(event));
        this.points.view.x += x - later;
        this.points.view.y += y - lower;
        this.redraw();
      },
      { passive: false },
    );
  }

  private pan(finger: number, before: [number, number], now: [number, number]): void {
    const other = [...this.fingers].find(([id]) => id !== finger)?.[1];
    if (other) {
      const apart = (one: [number, number]) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
      this.zoom(apart(now) / apart(before));
    }
    const [from, to] = [this.place(before), this.place(now)];
    const share = other ? 0.5 : 1;
    this.points.view.x += (from[0] - to[0]) * share;
    this.points.view.y += (from[1] - to[1]) * share;
    this.redraw();
  }

  private draw(now: [number, number]): void {
    const last = this.path[this.path.length - 1];
    if (!last || Math.hypot(now[0] - last[0], now[1] - last[1]) < 3) return; // none after Escape
    this.path.push(now);
    this.line.setAttribute("points", this.path.map((pair) => pair.join(",")).join(" "));
  }

  /** Return the cells inside the lasso: a line from them to the right crosses it an odd number of times. */
  private inside(): Uint32Array {
    const ring = this.path.map((pair) => this.place(pair));
    const xs = ring.map(([x]) => x);
    const ys = ring.map(([, y]) => y);
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    return this.drawn
      .filter((cell) => {
        const x = this.places[2 * cell]!;
        const y = this.places[2 * cell + 1]!;
        if (x < left || x > right || y < low || y > high) return false;
        let odd = false;
        for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
          const crosses = ys[i]! > y !== ys[j]! > y;
          if (crosses && x < ((xs[j]! - xs[i]!) * (y - ys[i]!)) / (ys[j]! - ys[i]!) + xs[i]!) odd = !odd;
        }
        return odd;
      })
      .sort();
  }
}
