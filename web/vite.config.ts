import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { defineConfig } from "vite";

// The same digest is taken by tests/test_explorer.py, so that a bundle that is older than its source fails there.
const files = [
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "vite.config.ts",
  ...readdirSync("src").map((name) => join("src", name)),
].sort();
const digest = createHash("sha256");
for (const name of files) digest.update(name + "\0").update(readFileSync(name)).update("\0");

export default defineConfig({
  build: {
    outDir: "../src/scmedley/report",
    emptyOutDir: false,
    copyPublicDir: false,
    target: "es2022",
    lib: { entry: "src/main.ts", formats: ["iife"], name: "explorer", fileName: () => "explorer.js" },
    rollupOptions: {
      output: { postBanner: `/* scMedley explorer, built from web/; sources sha256 ${digest.digest("hex")} */` },
    },
  },
});
