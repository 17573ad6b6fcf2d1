import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

// tests/test_explorer.py takes both digests again: a bundle that is older than its source, or edited by hand, fails there.
const files = [
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "vite.config.ts",
  ...readdirSync("src").map((name) => join("src", name)),
].sort();
const sources = createHash("sha256");
for (const name of files) sources.update(name + "\0").update(readFileSync(name)).update("\0");

const banner: Plugin = {
  name: "banner",
  generateBundle(_, bundle) {
    for (const chunk of Object.values(bundle)) {
      if (chunk.type !== "chunk") continue;
      const body = createHash("sha256").update(chunk.code).digest("hex");
      const words = `sources sha256 ${sources.digest("hex")}, what follows sha256 ${body}`;
      chunk.code = `/* scMedley explorer, built from web/; ${words} */\n${chunk.code}`;
    }
  },
};

export default defineConfig({
  plugins: [banner],
  build: {
    outDir: "../src/scmedley/report",
    emptyOutDir: false,
    copyPublicDir: false,
    target: "es2022",
    lib: { entry: "src/main.ts", formats: ["iife"], name: "explorer", fileName: () => "explorer.js" },
  },
});
