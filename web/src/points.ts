// A WebGL2 renderer of many points. Why we use no library: see ../README.md.

const VERTEX = `#version 300 es
in vec2 place;
in vec4 colour;
uniform vec3 view; // middle, zoom
uniform float size;
uniform float faint;
out vec4 shown;
void main() {
  gl_Position = vec4((place - view.xy) * 2.0 * view.z, 0, 1);
  gl_PointSize = size;
  shown = vec4(mix(vec3(0.6), colour.rgb, sqrt(faint)), colour.a * faint);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 shown;
uniform float size;
out vec4 pixel;
void main() {
  float away = length(gl_PointCoord - 0.5) * size;
  float alpha = shown.a * clamp(size * 0.5 - away + 0.25, 0.0, 1.0);
  pixel = vec4(shown.rgb * alpha, alpha);
}`;

export interface View {
  x: number;
  y: number;
  zoom: number;
}

export class NoWebGL extends Error {}

export class Points {
  private readonly gl: WebGL2RenderingContext;
  private program!: WebGLProgram;
  private colourBuffer!: WebGLBuffer;
  private colours: Uint8Array;
  private order: Uint32Array;
  private nFirst: number; // of the order: cells that are drawn faint
  private waiting = 0;
  private changed = true;
  view: View = { x: 0.5, y: 0.5, zoom: 0.94 };

  /** `places`: x and y in [0, 1] of all cells; `drawn`: the cells with coordinates, in painting order. */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly places: Float32Array,
    private readonly drawn: Uint32Array,
  ) {
    const gl = canvas.getContext("webgl2", { antialias: false, powerPreference: "high-performance" });
    if (!gl) throw new NoWebGL();
    this.gl = gl;
    this.colours = new Uint8Array((places.length / 2) * 4);
    this.order = drawn;
    this.nFirst = 0;
    this.prepare();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      this.show();
    });
  }

  private prepare(): void {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ] as const) {
      const shader = gl.createShader(kind)!;
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error(gl.getProgramInfoLog(program) ?? "shaders do not link");
    }
    this.program = program;
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.attribute("place", this.places, 2, gl.FLOAT);
    this.colourBuffer = this.attribute("colour", this.colours, 4, gl.UNSIGNED_BYTE);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    this.changed = true;
  }

  private attribute(name: string, values: Float32Array | Uint8Array, size: number, kind: number): WebGLBuffer {
    const { gl } = this;
    const buffer = gl.createBuffer();
    const place = gl.getAttribLocation(this.program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, kind, kind === gl.UNSIGNED_BYTE, 0, 0);
    return buffer;
  }

  /** Set red, green, blue and alpha of all cells. */
  colour(colours: Uint8Array): void {
    this.colours = colours;
    this.changed = true;
    this.show();
  }

  /** Draw selected cells (1) last and the others (0) faint; `null`: draw all alike. */
  select(selected: Uint8Array | null): void {
    if (!selected) {
      this.order = this.drawn;
      this.nFirst = 0;
    } else {
      const rest = this.drawn.filter((cell) => !selected[cell]);
      this.order = new Uint32Array(this.drawn.length);
      this.order.set(rest);
      this.order.set(this.drawn.filter((cell) => selected[cell]), rest.length);
      this.nFirst = rest.length;
    }
    this.changed = true;
    this.show();
  }

  /** Draw with the next frame. */
  show(): void {
    if (!this.waiting) this.waiting = requestAnimationFrame(() => this.draw());
  }

  private draw(): void {
    this.waiting = 0;
    const { gl, canvas, view, program } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const side = Math.max(1, Math.round(canvas.clientWidth * ratio));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    if (this.changed) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.colourBuffer);
      gl.bufferData(gl.ARRAY_BUFFER, this.colours, gl.DYNAMIC_DRAW);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, this.order, gl.DYNAMIC_DRAW);
      this.changed = false;
    }
    const room = (0.55 * side) / Math.sqrt(this.drawn.length || 1);
    const size = Math.min(9 * ratio, Math.max(1.7 * ratio, Math.min(5 * ratio, room)) * Math.sqrt(view.zoom));
    const uniform = (name: string) => gl.getUniformLocation(program, name);
    gl.viewport(0, 0, side, side);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform3f(uniform("view"), view.x, view.y, view.zoom);
    gl.uniform1f(uniform("size"), size);
    gl.uniform1f(uniform("faint"), 0.2);
    if (this.nFirst) gl.drawElements(gl.POINTS, this.nFirst, gl.UNSIGNED_INT, 0);
    gl.uniform1f(uniform("faint"), 1);
    if (this.nFirst) gl.uniform1f(uniform("size"), 1.4 * size);
    gl.drawElements(gl.POINTS, this.order.length - this.nFirst, gl.UNSIGNED_INT, 4 * this.nFirst);
  }
}
