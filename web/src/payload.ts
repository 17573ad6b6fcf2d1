// Reads what scmedley/report/explorer.py packs: base64 of gzip of [length, header as JSON, arrays].

export type Numbers = Uint8Array | Uint16Array | Uint32Array | Float32Array;

export interface Column {
  name: string;
  levels?: string[];
  low?: number;
  high?: number;
}

export interface Header {
  total: number;
  names: string[];
  batches: string[];
  labels: string[];
  batch_key: string | null;
  label_key: string | null;
  maps: { title: string; note: string }[];
  columns: Column[];
  palette: string[];
  no_value: string;
  trust: [number, number, string, string][]; // label, batch, agreement, comparison with the baseline
  words: Record<string, string>; // sentence for each pair of such words, joined by "|"
  unchecked: string; // sentence for a pair that the check left out
  unusable: string | null; // sentence if the check failed over the whole run
  whatif: { kind: string; pre_selu: boolean[]; shape: [number, number] | null; factor: number | null } | null;
  genes: string[];
  arrays: Record<string, [string, number[], number]>;
}

export const NONE = 65535; // code of a missing value in arrays of 16 bits
export const STEPS = 65534;

export class Payload {
  readonly header: Header;
  private readonly start: number; // of the arrays

  constructor(private readonly whole: ArrayBuffer) {
    const length = new DataView(whole).getUint32(0, true);
    this.header = JSON.parse(new TextDecoder().decode(new Uint8Array(whole, 4, length)));
    this.start = 4 + length;
  }

  has(name: string): boolean {
    return name in this.header.arrays;
  }

  shape(name: string): number[] {
    return this.header.arrays[name]![1];
  }

  get(name: string): Numbers {
    const [kind, shape, from] = this.header.arrays[name]!;
    const offset = this.start + from;
    const size = shape.reduce((a, b) => a * b, 1);
    if (kind === "u1") return new Uint8Array(this.whole, offset, size);
    if (kind === "u2") return new Uint16Array(this.whole, offset, size);
    if (kind === "u4") return new Uint32Array(this.whole, offset, size);
    if (kind === "f4") return new Float32Array(this.whole, offset, size);
    return single(new Uint16Array(this.whole, offset, size));
  }

  floats(name: string): Float32Array {
    return this.get(name) as Float32Array;
  }
}

export async function unpack(text: string): Promise<Payload> {
  const stream = new Blob([await bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Payload(await new Response(stream).arrayBuffer());
}

async function bytes(text: string): Promise<Uint8Array<ArrayBuffer>> {
  const quick = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (quick) return quick(text);
  const found = new Uint8Array((text.length / 4) * 3 - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  const step = 1 << 20; // characters at a time, a multiple of 4
  for (let start = 0, to = 0; start < text.length; start += step) {
    const part = atob(text.slice(start, start + step));
    for (let i = 0; i < part.length; i++) found[to++] = part.charCodeAt(i);
    await pause();
  }
  return found;
}

let halves: Float32Array | undefined;

/** Convert half to single precision, by a table of all 65,536 values. */
export function single(bits: Uint16Array): Float32Array {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const exponent = (i >> 10) & 31;
      const fraction = i & 1023;
      let value = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14;
      if (exponent === 31) value = fraction ? NaN : Infinity;
      halves[i] = i & 0x8000 ? -value : value;
    }
  }
  const table = halves;
  const found = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) found[i] = table[bits[i]!]!;
  return found;
}

/** Let the browser draw and respond before work goes on. */
export function pause(): Promise<void> {
  return new Promise((done) => setTimeout(done, 0));
}
