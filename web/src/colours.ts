// Colours and numbers, for the light and the dark page.

export type Rgb = [number, number, number];

/** As in the style sheet, a printed page is always light. */
export const DARK = matchMedia("screen and (prefers-color-scheme: dark)");

const SEQUENTIAL = {
  light: ["#c9d1da", "#9cc0df", "#5a9bd0", "#1f67a8", "#0a2f5c"],
  dark: ["#465063", "#2f5f8a", "#3f8fce", "#8cc8f5", "#eef8ff"],
};
const DIVERGING = {
  light: ["#174a8c", "#6ba3d6", "#f2f2f2", "#e58a72", "#9c1c1c"],
  dark: ["#9ad0ff", "#3f7fb8", "#242a35", "#b8553f", "#ffb39e"],
};

export function rgb(hex: string): Rgb {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as Rgb;
}

/** Return an opaque colour as the number whose bytes in memory are red, green, blue and alpha. */
export function packed([r, g, b]: Rgb): number {
  return ((255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
}

export function css([r, g, b]: Rgb): string {
  return `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)})`;
}

/** Return the function from a share, 0 to 1, to the colour of a scale. */
export function scale(name: "sequential" | "diverging"): (share: number) => Rgb {
  const stops = (name === "sequential" ? SEQUENTIAL : DIVERGING)[DARK.matches ? "dark" : "light"].map(rgb);
  return (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    const [one, other] = [stops[below]!, stops[below + 1]!];
    return one.map((value, i) => value + (place - below) * (other[i]! - value)) as Rgb;
  };
}

/** Draw a colour bar. */
export function bar(canvas: HTMLCanvasElement, name: "sequential" | "diverging"): void {
  canvas.width = 128;
  canvas.height = 1;
  const context = canvas.getContext("2d")!;
  const colour = scale(name);
  for (let i = 0; i < 128; i++) {
    context.fillStyle = css(colour(i / 127));
    context.fillRect(i, 0, 1, 1);
  }
}

/** Return a number as text, as in the rest of the report. */
export function number(value: number, signed = false): string {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const digits = size >= 1000 ? 0 : size >= 10 ? 1 : 2;
  const text = size.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const zero = Number(text.replaceAll(",", "")) === 0;
  return (value < 0 && !zero ? "−" : signed && !zero ? "+" : "") + text;
}

/** Return a number of any size as text. */
export function anySize(value: number): string {
  const size = Math.abs(value);
  const plain = size === 0 || (size >= 0.01 && size < 1e7) || !Number.isFinite(value);
  return plain ? number(value) : value.toExponential(2).replaceAll("-", "−").replace("e+", "e");
}

export const count = (value: number) => value.toLocaleString("en-US");
