// Sphinx adds this script to the pages that have equations. It loads KaTeX, which lies beside it, and renders them.
const here = document.currentScript.src.replace(/[^/]*$/, "");

function load(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = here + name;
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
}

const sheet = document.createElement("link");
sheet.rel = "stylesheet";
sheet.href = here + "katex.min.css";
document.head.append(sheet);
load("katex.min.js")
  .then(() => load("auto-render.min.js"))
  .then(() => {
    const delimiters = [
      { left: "\\[", right: "\\]", display: true },
      { left: "\\(", right: "\\)", display: false },
    ];
    for (const node of document.querySelectorAll(".math")) {
      renderMathInElement(node, { delimiters, throwOnError: false });
    }
    // Long equations are scrolled, by the keyboard too.
    for (const node of document.querySelectorAll(".katex-display")) node.tabIndex = 0;
  });
